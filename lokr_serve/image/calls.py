"""Calls: how the arguments of a module's call belong to its rows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSignature:
    """How the arguments of a module's call belong to its N rows.

    Calls join only where an argument that is not named here is equal in all of them.
    """

    counted_by: str  # the argument whose length is N
    rows: frozenset[str]  # tensors [N, ...], mappings of such, or None: joined along the first axis
    lists: frozenset[str] = frozenset()  # lists of N items: joined
    expanded: frozenset[str] = frozenset()  # a number, or a tensor [], [1] or [N]: one for each row

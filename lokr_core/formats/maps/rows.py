"""Rows of a map: one name of the original code, and the diffusers modules that share its rows.

Names may hold the placeholders ``{n}``, a number, and ``{rest}``, whatever follows. No row holds
a size: where a fused module is to be cut follows from the modules of the base. A name that both
sides have in common needs no row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Shares(Enum):
    """How the outputs of a fused module are shared out, where the base has no split modules."""

    EQUAL = "equal"
    SQUARE = "square"  # as many as there are inputs for each but the last, which has the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class NamePair:
    """A module under both of its names."""

    original: str
    diffusers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A module of the original code and what diffusers made of it."""

    original: str
    diffusers: tuple[str, ...]  # in the order of their outputs in the original
    shares: Shares = Shares.EQUAL
    is_swapped: bool = False  # shift and scale, the two halves of the outputs, changed places
    when: NamePair | None = None  # the row holds only where the base has this module
    unless: NamePair | None = None  # and not where it has this one


@dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """All rows of one family; the marks are names that tell which side a base is on."""

    family: str
    original_marks: tuple[str, ...]
    diffusers_marks: tuple[str, ...]
    rows: tuple[Row, ...]


def rows(table: Mapping[str, str], *, original: str = "", diffusers: str = "") -> tuple[Row, ...]:
    """Return the rows of a table.

    Args:
        table: The original name of each module, and the diffusers names that share its outputs,
            with spaces between them.
        original: What the original names start with.
        diffusers: What the diffusers names start with.
    """
    return tuple(
        Row(original=original + name, diffusers=tuple(diffusers + part for part in parts.split()))
        for name, parts in table.items()
    )

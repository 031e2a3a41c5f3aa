"""Group: the entries of one layout in a forward, applied together at each module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.layout import AdapterLayout
from lokr_core.mix import MixPart, module_weight
from lokr_core.ops.batched import BatchedDelta
from lokr_core.weights import ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupRows:
    """Where a group's rows lie in the forward, E entries of L rows each."""

    span: slice | None  # set where the rows are consecutive, in order and without padding
    gather: Tensor  # [E * L] row of each place; padding repeats a row
    filled: Tensor | None  # places that are no padding; None where all are
    entries: tuple[Tensor, ...]  # rows of each entry, on the CPU

    @classmethod
    def of(cls, entries: Sequence[Tensor], device: torch.device) -> "GroupRows":
        """Lay out the rows of each entry, padded to the longest; some may have none, not all.

        Padding repeats rows of the group, as no other is sure to suit it: a token id, say.

        Args:
            entries: Rows of each entry, on the CPU, where they are sorted out.
            device: Where the products run.
        """
        every = tuple(entries)
        length = max(len(rows) for rows in entries)
        first = next(rows[:1] for rows in entries if len(rows))  # pads an entry that has none
        padded = [
            torch.cat((rows, (rows[:1] if len(rows) else first).expand(length - len(rows))))
            for rows in entries
        ]
        gather = torch.cat(padded)
        counts = torch.tensor([len(rows) for rows in entries])
        is_filled = (torch.arange(length) < counts[:, None]).flatten()
        if not bool(is_filled.all()):
            filled = is_filled.nonzero().squeeze(1).to(device)
            return cls(span=None, gather=gather.to(device), filled=filled, entries=every)
        start, end = int(gather[0]), int(gather[0]) + len(gather)
        in_order = torch.equal(gather, torch.arange(start, end))
        span = slice(start, end) if in_order else None
        return cls(span=span, gather=gather.to(device), filled=None, entries=every)


def runs_of(rows: Tensor) -> list[slice]:
    """Return rows [L], on the CPU, as slices of consecutive ones, in order."""
    breaks = (rows.diff() != 1).nonzero().squeeze(1) + 1
    pieces = rows.tensor_split(breaks)
    return [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece)]


class Group:
    """Adapters of one layout and the rows that they change."""

    def __init__(
        self,
        *,
        layout: AdapterLayout,
        storage: Tensor,
        parts: Sequence[MixPart],
        adapters: Sequence[Adapter],
        rows: GroupRows,
    ) -> None:
        self.layout = layout
        self.parts = tuple(parts)
        self.adapters = tuple(adapters)
        self.rows = rows
        self._storage = storage  # [E, num_banked], scale and weight folded in
        self._has_unique_rows = rows.filled is None and len(rows.gather.unique()) == len(
            rows.gather
        )

    @cached_property
    def runs(self) -> tuple[tuple[int, slice], ...]:
        """Each entry's rows as runs of consecutive ones, with the entry that they are of."""
        entries = enumerate(self.rows.entries)
        return tuple((entry, run) for entry, rows in entries for run in runs_of(rows))

    @property
    def dtype(self) -> torch.dtype:
        """What the factors are kept in, and products with them are computed in."""
        return self._storage.dtype

    @property
    def changed_rows(self) -> Tensor:
        """The rows that the group changes; one may stand there several times."""
        rows = self.rows
        return rows.gather if rows.filled is None else rows.gather[rows.filled]

    def covers(self, num_rows: int) -> bool:
        """Whether the group's rows are all rows of a forward, in order."""
        return self.rows.span is not None and len(self.rows.gather) == num_rows

    def with_rows(self, part_rows: Mapping[MixPart, Tensor]) -> "Group":
        """Return a group of the same entries for the rows of another module."""
        none = torch.zeros(0, dtype=torch.long)
        return Group(
            layout=self.layout,
            storage=self._storage,
            parts=self.parts,
            adapters=self.adapters,
            rows=GroupRows.of(
                [part_rows.get(part, none) for part in self.parts], self._storage.device
            ),
        )

    def banked(self, path: str, entries: slice = slice(None)) -> ModuleWeights:
        """Return the factors of a module, [E, ...], with scale and weight folded in."""
        return self.layout.modules[path].banked(self._storage[entries])

    def is_off(self, path: str) -> bool:
        """Whether an entry has weight 0 on a module."""
        return 0 in self.weights(path)

    def weights(self, path: str) -> list[float]:
        """Return each entry's weight on a module."""
        return [module_weight(part, path) for part in self.parts]

    def take(self, rows: Tensor) -> Tensor:
        """Return the group's rows of ``rows`` [N, ...] as [E * L, ...], a view where it can be."""
        span = self.rows.span
        return rows.index_select(0, self.rows.gather) if span is None else rows[span]

    def add_delta(self, delta: BatchedDelta, out: Tensor, x: Tensor) -> None:
        """Add a delta's output to the group's rows of ``out`` [N, ...], and to no other."""
        rows = self.rows
        if rows.span is not None and len(rows.gather) == len(x):
            delta.add_to(out, x)
        elif rows.span is not None:
            delta.add_to(out[rows.span], x[rows.span])
        elif self._has_unique_rows:
            changed = out.index_select(0, rows.gather)
            delta.add_to(changed, x.index_select(0, rows.gather))
            out.index_copy_(0, rows.gather, changed)
        else:
            self.add_rows(out, delta.product(x.index_select(0, rows.gather)))

    def add_rows(self, out: Tensor, change: Tensor) -> None:
        """Add a change [E * L, ...] to the group's rows of ``out``, and to no other."""
        span, filled = self.rows.span, self.rows.filled
        if span is not None:
            out[span].add_(change)
        elif filled is None:
            out.index_add_(0, self.rows.gather, change)
        else:
            out.index_add_(0, self.rows.gather[filled], change[filled])

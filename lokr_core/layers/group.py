"""Group: the entries of one layout in a forward, applied together at each module."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.layout import AdapterLayout
from lokr_core.mix import MixPart
from lokr_core.ops.batched import BatchedDelta, batched
from lokr_core.pool import module_weight
from lokr_core.spec import ModuleSpec
from lokr_core.weights import Gain, GainAxis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupRows:
    """Where a group's rows lie in the forward, E entries of L rows each."""

    span: slice | None  # set where the rows are consecutive, in order and without padding
    gather: Tensor  # [E * L] row of each place; padding repeats a row
    filled: Tensor | None  # places that are no padding; None where all are

    @classmethod
    def of(cls, entries: Sequence[Tensor], device: torch.device) -> "GroupRows":
        """Lay out the rows of each entry, padded to the longest; an entry may have none.

        Args:
            entries: Rows of each entry, on the CPU, where they are sorted out.
            device: Where the products run.
        """
        length = max(len(rows) for rows in entries)
        first = torch.zeros(1, dtype=torch.long)  # what an entry without rows is padded with
        padded = [
            torch.cat((rows, (rows[:1] if len(rows) else first).expand(length - len(rows))))
            for rows in entries
        ]
        gather = torch.cat(padded)
        counts = torch.tensor([len(rows) for rows in entries])
        is_filled = (torch.arange(length) < counts[:, None]).flatten()
        if not bool(is_filled.all()):
            filled = is_filled.nonzero().squeeze(1)
            return cls(span=None, gather=gather.to(device), filled=filled.to(device))
        start, end = int(gather[0]), int(gather[0]) + len(gather)
        in_order = torch.equal(gather, torch.arange(start, end))
        span = slice(start, end) if in_order else None
        return cls(span=span, gather=gather.to(device), filled=None)


class Group:
    """Adapters of one layout and the rows that they change."""

    def __init__(
        self,
        *,
        layout: AdapterLayout,
        storage: Tensor,
        parts: Sequence[MixPart],
        rows: GroupRows,
    ) -> None:
        self.layout = layout
        self.parts = tuple(parts)
        self._storage = storage  # [E, num_banked], scale and weight folded in
        self._rows = rows
        self._has_unique_rows = rows.filled is None and len(rows.gather.unique()) == len(
            rows.gather
        )
        self._prepared: dict[str, tuple[BatchedDelta, Gain | None]] = {}

    @property
    def changed_rows(self) -> Tensor:
        """The rows that the group changes; one may stand there several times."""
        rows = self._rows
        return rows.gather if rows.filled is None else rows.gather[rows.filled]

    def with_rows(self, part_rows: Mapping[MixPart, Tensor]) -> "Group":
        """Return a group of the same entries for the rows of another module."""
        none = torch.zeros(0, dtype=torch.long)
        return Group(
            layout=self.layout,
            storage=self._storage,
            parts=self.parts,
            rows=GroupRows.of(
                [part_rows.get(part, none) for part in self.parts], self._storage.device
            ),
        )

    def add_to(self, out: Tensor, x: Tensor, base: Tensor, module: ModuleSpec) -> None:
        """Add the group's change of one module to ``out``, in place.

        Args:
            out: Output so far, [N, O].
            x: Activations, [N, I].
            base: Output of the base, [N, O]; read only where an adapter has a gain.
            module: The module.
        """
        delta, gain = self._at(module.path)
        rows = self._rows
        if gain is not None:
            self._add_rows(out, self._gained(delta, gain, module, x, base))
        elif rows.span is not None and len(rows.gather) == len(x):
            delta.add_to(out, x)  # every row, in order: the step that is worth most
        elif rows.span is not None:
            delta.add_to(out[rows.span], x[rows.span])
        elif self._has_unique_rows:
            changed = out.index_select(0, rows.gather)
            delta.add_to(changed, x.index_select(0, rows.gather))
            out.index_copy_(0, rows.gather, changed)
        else:
            self._add_rows(out, delta.product(x.index_select(0, rows.gather)))

    def _add_rows(self, out: Tensor, change: Tensor) -> None:
        """Add a change [E * L, O] to the rows that it belongs to, and to no other."""
        filled = self._rows.filled
        if filled is None:
            out.index_add_(0, self._rows.gather, change)
        else:
            out.index_add_(0, self._rows.gather[filled], change[filled])

    def _at(self, path: str) -> tuple[BatchedDelta, Gain | None]:
        found = self._prepared.get(path)
        if found is None:
            weights = self.layout.modules[path].banked(self._storage)
            found = batched(weights.terms[0].delta), weights.gain
            self._prepared[path] = found
        return found

    def _gained(
        self, delta: BatchedDelta, gain: Gain, module: ModuleSpec, x: Tensor, base: Tensor
    ) -> Tensor:
        """Return ``weight * (W' x − W x)`` [E * L, O] for W' = gain * (W + delta).

        The delta's product carries the weight already; the base's share is weighted here.
        """
        gather = self._rows.gather
        length = len(gather) // len(self.parts)
        values = gain.values.repeat_interleave(length, 0)  # [E * L, O] or [E * L, I]
        weight = self._weights(module.path).to(values).repeat_interleave(length)[:, None]
        rows = x.index_select(0, gather)
        if gain.axis is GainAxis.INPUT:
            product = rows * (values - 1) @ module.weight.to(rows.dtype).mT
            return delta.product(rows * values) + weight * product
        plain = base.index_select(0, gather)
        if module.bias is not None:
            plain = plain - module.bias.to(plain.dtype)
        return values * delta.product(rows) + weight * (values - 1) * plain

    def _weights(self, path: str) -> Tensor:
        """Return each entry's weight on a module, [E], float64."""
        weights = [module_weight(part, path) for part in self.parts]
        return torch.tensor(weights, dtype=torch.float64)

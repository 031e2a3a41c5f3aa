"""A bank: the factors of the active parts of mixes side by side, so that one product serves all.

Scale and weight are folded into each part's leading factors as it is copied in. Parts that are
used together are brought next to each other by swapping rows, so that a group is one slice of the
bank, a strided view for every factor, and a change of the active set costs one copy for each part
that comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.layout import AdapterLayout
from lokr_core.mix import AdapterRef, MixPart
from lokr_core.pool import AdapterPool, module_weight

_GROWTH = 2


class LayoutBank:
    """The bank of one layout; ``generation`` changes whenever a row's content moves."""

    def __init__(self, layout: AdapterLayout, dtype: torch.dtype) -> None:
        self._layout = layout
        self._dtype = dtype
        self._parts: list[MixPart] = []
        self._rows: Tensor | None = None  # [capacity, layout.num_elements]
        self.generation = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that the bank takes."""
        return 0 if self._rows is None else self._rows.nbytes

    def row_bytes(self) -> int:
        """Bytes of one part."""
        return self._layout.num_elements * self._dtype.itemsize

    def arrange(self, buckets: Sequence[Sequence[MixPart]], pool: AdapterPool) -> list[slice]:
        """Bring each bucket's parts next to each other, loading those that are not here.

        Returns:
            The rows of each bucket. A bucket's parts lie in them in any order; see :meth:`parts`.
        """
        for bucket in buckets:
            for part in bucket:
                if part not in self._parts:
                    self._load(part, pool.get(part.ref))
        start, slices = 0, []
        for bucket in buckets:
            self._gather(set(bucket), start)
            slices.append(slice(start, start + len(bucket)))
            start += len(bucket)
        return slices

    def parts(self, rows: slice) -> list[MixPart]:
        """Return the parts that lie in ``rows``, in order."""
        return self._parts[rows]

    def rows(self, rows: slice) -> Tensor:
        """Return rows of the bank, [E, layout.num_elements]."""
        assert self._rows is not None
        return self._rows[rows]

    def discard(self, ref: AdapterRef) -> None:
        """Forget the parts of an adapter."""
        for part in [part for part in self._parts if part.ref == ref]:
            last = len(self._parts) - 1
            self._swap(self._parts.index(part), last)
            self._parts.pop()

    def shrink_to(self, parts: Sequence[MixPart]) -> None:
        """Forget every part but these."""
        kept = set(parts)
        for index in reversed(range(len(self._parts))):
            if self._parts[index] not in kept:
                self._swap(index, len(self._parts) - 1)
                self._parts.pop()

    def _gather(self, bucket: set[MixPart], start: int) -> None:
        """Swap the bucket's parts into the rows from ``start``."""
        end = start + len(bucket)
        outside = [i for i in range(end, len(self._parts)) if self._parts[i] in bucket]
        for index in range(start, end):
            if self._parts[index] not in bucket:
                self._swap(index, outside.pop())

    def _swap(self, first: int, second: int) -> None:
        if first == second:
            return
        assert self._rows is not None
        held = self._rows[first].clone()
        self._rows[first] = self._rows[second]
        self._rows[second] = held
        self._parts[first], self._parts[second] = self._parts[second], self._parts[first]
        self.generation += 1

    def _load(self, part: MixPart, adapter: Adapter) -> None:
        row = self._new_row(adapter.buffer.device)
        row.copy_(adapter.buffer)
        coefficients = folded_weights(part, adapter)
        sizes = [slots.leading_size for slots in self._layout.modules.values()]
        spread = coefficients.repeat_interleave(torch.tensor(sizes))  # [num_leading]
        row[: self._layout.num_leading].mul_(spread.to(row))
        self._parts.append(part)

    def _new_row(self, device: torch.device) -> Tensor:
        count = len(self._parts)
        if self._rows is None or count == self._rows.shape[0]:
            capacity = max(1, _GROWTH * count)
            grown = torch.empty(
                capacity, self._layout.num_elements, dtype=self._dtype, device=device
            )
            if self._rows is not None:
                grown[:count] = self._rows
            self._rows = grown
            self.generation += 1
        return self._rows[count]


def part_weights(part: MixPart, layout: AdapterLayout) -> Tensor:
    """Return the part's weight on each module of the layout, [modules], float64."""
    return torch.tensor([module_weight(part, path) for path in layout.modules], dtype=torch.float64)


def folded_weights(part: MixPart, adapter: Adapter) -> Tensor:
    """Return scale times weight for each module of the adapter, [modules], float64."""
    return part_weights(part, adapter.layout) * adapter.scales


@dataclass(slots=True)
class _Use:
    bank: LayoutBank
    last_step: int = 0


class Banks:
    """The banks of all layouts, together bounded in bytes as far as one forward allows.

    A forward needs all of its own parts at once; what others left behind goes first, the layouts
    not used for longest before the rest.
    """

    def __init__(self, *, max_bytes: int, dtype: torch.dtype) -> None:
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._uses: dict[AdapterLayout, _Use] = {}
        self._step = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all banks."""
        return sum(use.bank.num_bytes for use in self._uses.values())

    def begin_step(self) -> None:
        """Note that a new forward is being planned."""
        self._step += 1

    def of(self, layout: AdapterLayout, parts: Sequence[MixPart]) -> LayoutBank:
        """Return the layout's bank with room made for ``parts``."""
        use = self._uses.setdefault(layout, _Use(bank=LayoutBank(layout, self._dtype)))
        use.last_step = self._step
        if self.num_bytes + len(parts) * use.bank.row_bytes() > self._max_bytes:
            use.bank.shrink_to(parts)
            self._drop_idle(layout)
        return use.bank

    def discard(self, ref: AdapterRef) -> None:
        """Forget an adapter in every bank."""
        for use in self._uses.values():
            use.bank.discard(ref)

    def _drop_idle(self, keep: AdapterLayout) -> None:
        idle = sorted(
            (layout for layout, use in self._uses.items() if use.last_step != self._step),
            key=lambda layout: self._uses[layout].last_step,
        )
        for layout in idle:
            if self.num_bytes <= self._max_bytes:
                return
            if layout is not keep:
                del self._uses[layout]

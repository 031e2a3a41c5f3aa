"""Banks: the factors of the active parts of mixes side by side, so that one product serves all.

Scale and weight are folded into each part's leading factors as it is copied in. Parts that are
used together are brought next to each other by swapping rows, so that a group is one slice of the
bank, a strided view for every factor, and a change of the active set costs one copy for each part
that comes.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.layout import AdapterLayout
from lokr_core.mix import MixPart, module_weight
from lokr_core.pool import AdapterPool

_GROWTH = 2


class LayoutBank:
    """The bank of one layout; ``generation`` changes whenever a row's content may move."""

    def __init__(self, layout: AdapterLayout, dtype: torch.dtype) -> None:
        self._layout = layout
        self._dtype = dtype
        self._parts: list[MixPart] = []
        self._places: dict[MixPart, int] = {}
        self._rows: Tensor | None = None  # [capacity, layout.num_banked]
        self.generation = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that the bank takes."""
        return self.capacity * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one part."""
        return self._layout.num_banked * self._dtype.itemsize

    @property
    def capacity(self) -> int:
        """Parts that it has room for."""
        return 0 if self._rows is None else self._rows.shape[0]

    def rows_with(self, parts: Sequence[MixPart]) -> int:
        """Return the number of rows that it takes to hold ``parts`` beside what is here."""
        return len(self._parts) + sum(part not in self._places for part in parts)

    def arrange(self, buckets: Sequence[Sequence[MixPart]], pool: AdapterPool) -> list[slice]:
        """Bring each bucket's parts next to each other, loading those that are not here.

        Returns:
            The rows of each bucket. A bucket's parts lie in them in any order; see :meth:`parts`.
        """
        for bucket in buckets:
            for part in bucket:
                if part not in self._places:
                    self._load(part, pool.get(part.ref))
        start, slices = 0, []
        for bucket in buckets:
            self._gather(bucket, start)
            slices.append(slice(start, start + len(bucket)))
            start += len(bucket)
        return slices

    def parts(self, rows: slice) -> list[MixPart]:
        """Return the parts that lie in ``rows``, in order."""
        return self._parts[rows]

    def rows(self, rows: slice) -> Tensor:
        """Return rows of the bank, [E, layout.num_banked]."""
        assert self._rows is not None
        return self._rows[rows]

    def reserve(self, capacity: int, device: torch.device) -> None:
        """Move to new storage of this capacity; what plans look at stays in the old."""
        count = len(self._parts)
        assert capacity >= count
        rows = torch.empty(capacity, self._layout.num_banked, dtype=self._dtype, device=device)
        if self._rows is not None:
            rows[:count] = self._rows[:count]
        self._rows = rows
        self.generation += 1

    def forget_removed(self, pool: AdapterPool) -> None:
        """Forget the parts of adapters that are no longer in the pool."""
        self._forget([part for part in self._parts if part.ref not in pool])

    def keep_only(self, parts: Sequence[MixPart]) -> None:
        """Forget every part but these."""
        kept = set(parts)
        self._forget([part for part in self._parts if part not in kept])

    def _forget(self, parts: Sequence[MixPart]) -> None:
        for part in parts:
            self._swap(self._places[part], len(self._parts) - 1)
            self._parts.pop()
            del self._places[part]
            self.generation += 1  # the row will be written over

    def _gather(self, bucket: Sequence[MixPart], start: int) -> None:
        """Swap the bucket's parts into the rows from ``start``."""
        end = start + len(bucket)
        wanted = set(bucket)
        outside = [self._places[part] for part in bucket if self._places[part] >= end]
        for index in range(start, end):
            if self._parts[index] not in wanted:
                self._swap(index, outside.pop())

    def _swap(self, first: int, second: int) -> None:
        if first == second:
            return
        assert self._rows is not None
        held = self._rows[first].clone()
        self._rows[first] = self._rows[second]
        self._rows[second] = held
        parts = self._parts
        parts[first], parts[second] = parts[second], parts[first]
        self._places[parts[first]], self._places[parts[second]] = first, second
        self.generation += 1

    def _load(self, part: MixPart, adapter: Adapter) -> None:
        assert self._rows is not None
        row = self._rows[len(self._parts)]
        row.copy_(adapter.buffer[: self._layout.num_banked])
        coefficients = folded_weights(part, adapter)
        sizes = torch.tensor(self._layout.leading_sizes, dtype=torch.long)
        spread = coefficients.repeat_interleave(sizes)  # [num_leading]
        row[: self._layout.num_leading].mul_(spread.to(row))
        self._places[part] = len(self._parts)
        self._parts.append(part)


def folded_weights(part: MixPart, adapter: Adapter) -> Tensor:
    """Return scale times weight for each entry of the adapter's modules, [entries], float64."""
    weights = [
        module_weight(part, path)
        for path, slots in adapter.layout.modules.items()
        for _ in slots.leading_sizes
    ]
    return torch.tensor(weights, dtype=torch.float64) * adapter.scales


class Banks:
    """The banks of all layouts, together bounded in bytes as far as one forward allows.

    A forward needs all of its own parts at once; what others left behind goes first, the layouts
    not used for longest before the rest.
    """

    def __init__(self, *, pool: AdapterPool, max_bytes: int, dtype: torch.dtype) -> None:
        self._pool = pool
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._banks: OrderedDict[AdapterLayout, LayoutBank] = OrderedDict()  # last used last

    @property
    def num_bytes(self) -> int:
        """Bytes of all banks."""
        return sum(bank.num_bytes for bank in self._banks.values())

    def prepare(self, needed: Mapping[AdapterLayout, Sequence[MixPart]]) -> list[LayoutBank]:
        """Return the bank of each layout, with room for all parts of one forward."""
        for layout in needed:
            bank = self._banks.setdefault(layout, LayoutBank(layout, self._dtype))
            self._banks.move_to_end(layout)
        self._drop_idle(needed)
        if self._bytes_with(needed) > self._max_bytes:
            self._shrink(needed)
        for layout, parts in needed.items():
            bank = self._banks[layout]
            num_rows = bank.rows_with(parts)
            if num_rows > bank.capacity:
                spare = max(0, self._max_bytes - self._bytes_with(needed)) // max(1, bank.row_bytes)
                roomy = min(_GROWTH * bank.capacity, num_rows + spare)
                bank.reserve(max(num_rows, roomy), self._device(parts))
        return [self._banks[layout] for layout in needed]

    def forget_removed(self) -> None:
        """Forget the adapters that are no longer in the pool, and banks that are left empty."""
        for layout, bank in list(self._banks.items()):
            bank.forget_removed(self._pool)
            if not bank.rows_with(()):
                del self._banks[layout]

    def _bytes_with(self, needed: Mapping[AdapterLayout, Sequence[MixPart]]) -> int:
        """Return the bytes of all banks once they have room for ``needed``."""
        return sum(
            bank.row_bytes * max(bank.capacity, bank.rows_with(needed.get(layout, ())))
            for layout, bank in self._banks.items()
        )

    def _drop_idle(self, needed: Mapping[AdapterLayout, Sequence[MixPart]]) -> None:
        for layout in [layout for layout in self._banks if layout not in needed]:
            if self._bytes_with(needed) <= self._max_bytes:
                return
            del self._banks[layout]

    def _shrink(self, needed: Mapping[AdapterLayout, Sequence[MixPart]]) -> None:
        """Leave room for the parts of this forward alone."""
        for layout, parts in needed.items():
            bank = self._banks[layout]
            bank.keep_only(parts)
            if bank.capacity > len(parts):
                bank.reserve(len(parts), self._device(parts))

    def _device(self, parts: Sequence[MixPart]) -> torch.device:
        return self._pool.get(parts[0].ref).buffer.device

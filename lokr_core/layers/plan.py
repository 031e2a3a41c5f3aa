"""RowPlan: for the rows of one forward, which products each routed module has to add.

Rows of one part are one entry of a group; a group is a run of entries of one layout with about as
many rows each. A mix adds its rows to each of its parts' entries, so it costs their sum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lokr_core.errors import RoutingError
from lokr_core.layers.bank import Banks, LayoutBank
from lokr_core.layers.group import Group, GroupRows
from lokr_core.layout import AdapterLayout
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, Apply, MixPart
from lokr_core.pool import AdapterPool

_SMALL_ROWS = 64  # below this many rows a batch's padding costs less than another batch
_MAX_PADDING = 2  # otherwise at most this many padded rows for each real one


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpan:
    """Consecutive rows of a forward that carry one mix."""

    mix: AdapterMix
    apply: Apply
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedRows:
    """The rows that one merged mix computes."""

    mix: MergedMix
    rows: Tensor | None  # None where it is every row of the forward


@dataclass(slots=True, kw_only=True, eq=False)
class RowPlan:
    """What to do for the rows of one forward."""

    num_rows: int
    merged: tuple[MergedRows, ...]
    groups: tuple[Group, ...]
    banks: tuple[tuple[LayoutBank, int], ...]  # each with the generation that the groups saw
    _by_path: dict[str, tuple[tuple[MergedRows, ...], tuple[Group, ...]]] = field(
        default_factory=dict
    )

    @property
    def is_current(self) -> bool:
        """Whether every bank still holds what the groups look at."""
        return all(bank.generation == seen for bank, seen in self.banks)

    def at(self, path: str) -> tuple[tuple[MergedRows, ...], tuple[Group, ...]]:
        """Return the merged mixes and the groups that change one module."""
        found = self._by_path.get(path)
        if found is None:
            found = (
                tuple(merged for merged in self.merged if path in merged.mix.weights),
                tuple(group for group in self.groups if path in group.layout.modules),
            )
            self._by_path[path] = found
        return found


class Planner:
    """Builds row plans from spans, over the adapters and merged weights that are at hand."""

    def __init__(self, pool: AdapterPool, banks: Banks) -> None:
        self._pool = pool
        self._banks = banks

    def plan(self, spans: Sequence[RowSpan], merged: dict[AdapterMix, MergedMix]) -> RowPlan | None:
        """Return the plan for rows that lie as ``spans`` say, or None if all are the base's."""
        if all(span.mix.is_base for span in spans):
            return None
        groups, banks = self._groups(_part_rows(spans))
        return _row_plan(spans, merged, groups, banks)

    def head_plan(
        self, spans: Sequence[RowSpan], merged: dict[AdapterMix, MergedMix], tokens: RowPlan
    ) -> RowPlan | None:
        """Return the plan for the rows that the head sees, over the same entries as ``tokens``.

        The rows of the banks stay where they are, so that both plans serve one forward.

        Raises:
            RoutingError: A row of the head carries an adapter that no token carries.
        """
        if all(span.mix.is_base for span in spans):
            return None
        part_rows = _part_rows(spans)
        groups = [group for group in tokens.groups if part_rows.keys() & group.parts]
        for part in part_rows.keys() - {part for group in groups for part in group.parts}:
            raise RoutingError(f"the head sees rows of {part.name!r}, which no token carries")
        of_head = tuple(group.with_rows(part_rows) for group in groups)
        return _row_plan(spans, merged, of_head, tokens.banks)

    def _groups(
        self, part_rows: dict[MixPart, Tensor]
    ) -> tuple[tuple[Group, ...], tuple[tuple[LayoutBank, int], ...]]:
        by_layout: dict[AdapterLayout, list[MixPart]] = {}
        for part in part_rows:
            by_layout.setdefault(self._pool.get(part.ref).layout, []).append(part)
        groups: list[Group] = []
        banks: list[tuple[LayoutBank, int]] = []
        prepared = self._banks.prepare(by_layout)
        for bank, (layout, parts) in zip(prepared, by_layout.items(), strict=True):
            buckets = list(_buckets(parts, part_rows))
            slices = bank.arrange(buckets, self._pool)
            groups += [_group(layout, bank, rows, part_rows) for rows in slices]
            banks.append((bank, bank.generation))
        return tuple(groups), tuple(banks)


def _row_plan(
    spans: Sequence[RowSpan],
    merged: dict[AdapterMix, MergedMix],
    groups: tuple[Group, ...],
    banks: tuple[tuple[LayoutBank, int], ...],
) -> RowPlan:
    num_rows = sum(span.num_rows for span in spans)
    return RowPlan(
        num_rows=num_rows,
        merged=tuple(
            MergedRows(
                mix=merged[mix],
                rows=None if len(rows) == num_rows else rows.to(merged[mix].device),
            )
            for mix, rows in _merged_rows(spans)
        ),
        groups=groups,
        banks=banks,
    )


def _group(
    layout: AdapterLayout, bank: LayoutBank, rows: slice, part_rows: dict[MixPart, Tensor]
) -> Group:
    parts, storage = bank.parts(rows), bank.rows(rows)
    return Group(
        layout=layout,
        storage=storage,
        parts=parts,
        rows=GroupRows.of([part_rows[part] for part in parts], storage.device),
    )


def _part_rows(spans: Sequence[RowSpan]) -> dict[MixPart, Tensor]:
    """Return the rows of each part that is applied unmerged."""
    pieces: dict[MixPart, list[Tensor]] = {}
    for span, rows in _located(spans):
        if span.apply is Apply.UNMERGED:
            for part in span.mix.parts:
                pieces.setdefault(part, []).append(rows)
    return {part: torch.cat(rows) if len(rows) > 1 else rows[0] for part, rows in pieces.items()}


def _merged_rows(spans: Sequence[RowSpan]) -> Iterator[tuple[AdapterMix, Tensor]]:
    """Yield each merged mix with its rows."""
    pieces: dict[AdapterMix, list[Tensor]] = {}
    for span, rows in _located(spans):
        if span.apply is Apply.MERGED and not span.mix.is_base:
            pieces.setdefault(span.mix, []).append(rows)
    for mix, found in pieces.items():
        yield mix, torch.cat(found)


def _located(spans: Sequence[RowSpan]) -> Iterator[tuple[RowSpan, Tensor]]:
    start = 0
    for span in spans:
        if span.num_rows:
            yield span, torch.arange(start, start + span.num_rows)
        start += span.num_rows


def _buckets(parts: Sequence[MixPart], part_rows: dict[MixPart, Tensor]) -> Iterator[list[MixPart]]:
    """Split parts into runs in which padding to the longest wastes little."""
    bucket: list[MixPart] = []
    real = 0
    for part in sorted(parts, key=lambda part: len(part_rows[part])):
        length = len(part_rows[part])
        padded = (len(bucket) + 1) * length
        if bucket and padded > max(_SMALL_ROWS, _MAX_PADDING * (real + length)):
            yield bucket
            bucket, real = [], 0
        bucket.append(part)
        real += length
    if bucket:
        yield bucket

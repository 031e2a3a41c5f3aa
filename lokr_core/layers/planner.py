"""Planner: makes row plans from spans.

Rows of one part are one entry of a group; a group is a run of entries of one layout with about as
many rows each. A mix adds its rows to each of its parts' entries, so it costs their sum.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from lokr_core.errors import RoutingError
from lokr_core.layers.bank import Banks, LayoutBank
from lokr_core.layers.group import Group, GroupRows
from lokr_core.layers.plan import MergedRows, RowPlan
from lokr_core.layers.spans import RowSpan, merged_rows, part_rows
from lokr_core.layout import AdapterLayout
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, MixPart
from lokr_core.pool import AdapterPool

_SMALL_ROWS = 64  # below this many rows a batch's padding costs less than another batch
_MAX_PADDING = 2  # otherwise at most this many padded rows for each real one


class Planner:
    """Builds row plans from spans, over the adapters and merged weights that are at hand."""

    def __init__(self, pool: AdapterPool, banks: Banks) -> None:
        self._pool = pool
        self._banks = banks

    def plan(self, spans: Sequence[RowSpan], merged: dict[AdapterMix, MergedMix]) -> RowPlan | None:
        """Return the plan for rows that lie as ``spans`` say, or None if all are the base's."""
        if all(span.mix.is_base for span in spans):
            return None
        groups, banks = self._groups(part_rows(spans))
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
        by_part = part_rows(spans)
        groups = [group for group in tokens.groups if by_part.keys() & group.parts]
        for part in by_part.keys() - {part for group in groups for part in group.parts}:
            raise RoutingError(f"the head sees rows of {part.name!r}, which no token carries")
        of_head = tuple(group.with_rows(by_part) for group in groups)
        return _row_plan(spans, merged, of_head, tokens.banks)

    def _groups(
        self, by_part: dict[MixPart, Tensor]
    ) -> tuple[tuple[Group, ...], tuple[tuple[LayoutBank, int], ...]]:
        by_layout: dict[AdapterLayout, list[MixPart]] = {}
        for part in by_part:
            by_layout.setdefault(self._pool.get(part.ref).layout, []).append(part)
        groups: list[Group] = []
        banks: list[tuple[LayoutBank, int]] = []
        prepared = self._banks.prepare(by_layout)
        for bank, (layout, parts) in zip(prepared, by_layout.items(), strict=True):
            buckets = list(_buckets(parts, by_part))
            slices = bank.arrange(buckets, self._pool)
            groups += [self._group(layout, bank, rows, by_part) for rows in slices]
            banks.append((bank, bank.generation))
        return tuple(groups), tuple(banks)

    def _group(
        self, layout: AdapterLayout, bank: LayoutBank, rows: slice, by_part: dict[MixPart, Tensor]
    ) -> Group:
        parts, storage = bank.parts(rows), bank.rows(rows)
        return Group(
            layout=layout,
            storage=storage,
            parts=parts,
            adapters=[self._pool.get(part.ref) for part in parts],
            rows=GroupRows.of([by_part[part] for part in parts], storage.device),
        )


def _row_plan(
    spans: Sequence[RowSpan],
    merged: dict[AdapterMix, MergedMix],
    groups: tuple[Group, ...],
    banks: tuple[tuple[LayoutBank, int], ...],
) -> RowPlan:
    num_rows = sum(span.num_rows for span in spans)
    return RowPlan(
        num_rows=num_rows,
        spans=tuple(spans),
        merged=tuple(
            MergedRows(
                mix=merged[mix],
                rows=None if len(rows) == num_rows else rows.to(merged[mix].device),
            )
            for mix, rows in merged_rows(spans)
        ),
        groups=groups,
        banks=banks,
    )


def _buckets(parts: Sequence[MixPart], by_part: dict[MixPart, Tensor]) -> Iterator[list[MixPart]]:
    """Split parts into runs in which padding to the longest wastes little."""
    bucket: list[MixPart] = []
    real = 0
    for part in sorted(parts, key=lambda part: len(by_part[part])):
        length = len(by_part[part])
        padded = (len(bucket) + 1) * length
        if bucket and padded > max(_SMALL_ROWS, _MAX_PADDING * (real + length)):
            yield bucket
            bucket, real = [], 0
        bucket.append(part)
        real += length
    if bucket:
        yield bucket

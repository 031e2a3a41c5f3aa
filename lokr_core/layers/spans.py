"""RowSpan: consecutive rows of a forward that carry one mix, and where they lie."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.mix import AdapterMix, Apply, MixPart


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpan:
    """Consecutive rows of a forward that carry one mix."""

    mix: AdapterMix
    apply: Apply
    num_rows: int


Parts = Callable[[AdapterMix], Sequence[MixPart]]  # which parts of a mix are asked for


def part_rows(
    spans: Sequence[RowSpan], parts: Parts = lambda mix: mix.parts
) -> dict[MixPart, Tensor]:
    """Return the rows of each part that is applied unmerged.

    Args:
        spans: All rows of a forward.
        parts: Which parts of a mix count; all, if not given.
    """
    pieces: dict[MixPart, list[Tensor]] = {}
    for span, rows in _located(spans):
        if span.apply is Apply.UNMERGED:
            for part in parts(span.mix):
                pieces.setdefault(part, []).append(rows)
    return {part: torch.cat(rows) if len(rows) > 1 else rows[0] for part, rows in pieces.items()}


def merged_rows(spans: Sequence[RowSpan]) -> Iterator[tuple[AdapterMix, Tensor]]:
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

"""Places: which outputs of which base modules the outputs of a file's module belong to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive outputs of one module of the base."""

    path: str
    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of outputs."""
        return self.stop - self.start


Place = tuple[Span, ...]  # in the order of the outputs of the file's module, end to end


def whole(path: str, out_features: int) -> Place:
    """Return the place that is all of a module."""
    return (Span(path=path, start=0, stop=out_features),)


def size(place: Place) -> int:
    """Return the number of outputs of a place."""
    return sum(len(span) for span in place)


def joined(places: Iterable[Place]) -> Place:
    """Return places end to end, as few spans as that takes."""
    spans: list[Span] = []
    for span in (span for place in places for span in place):
        last = spans[-1] if spans else None
        if last is not None and (last.path, last.stop) == (span.path, span.start):
            spans[-1] = Span(path=span.path, start=last.start, stop=span.stop)
        else:
            spans.append(span)
    return tuple(spans)


def cut(place: Place, sizes: Sequence[int]) -> list[Place]:
    """Return a place in pieces of these sizes, which come to its own."""
    assert sum(sizes) == size(place)
    ends = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    return [_between(place, start, stop) for start, stop in pairwise(ends)]


def swapped(place: Place) -> Place:
    """Return a place whose two halves have changed places."""
    half = size(place) // 2
    first, second = cut(place, [half, size(place) - half])
    return joined([second, first])


def overlap(one: Place, other: Place) -> str | None:
    """Return the path of a module of which two places share outputs."""
    for a in one:
        for b in other:
            if a.path == b.path and a.start < b.stop and b.start < a.stop:
                return a.path
    return None


def _between(place: Place, start: int, stop: int) -> Place:
    spans = []
    begin = 0  # where the span begins in the place
    for span in place:
        low, high = max(start, begin), min(stop, begin + len(span))
        if low < high:
            offset = span.start - begin
            spans.append(Span(path=span.path, start=low + offset, stop=high + offset))
        begin += len(span)
    return tuple(spans)

"""Tally: how many blocks of code are busy with each id."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Tally:
    """Counts ids while blocks run, and knows those that any block counts."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __contains__(self, adapter_id: str) -> bool:
        """Whether a block counts an id."""
        return adapter_id in self._counts

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids that blocks count, each once."""
        return iter(self._counts)

    @contextmanager
    def counting(self, ids: Iterable[str]) -> Iterator[None]:
        """Count ids while the block runs."""
        counted = tuple(ids)
        self._counts.update(counted)
        try:
            yield
        finally:
            self._counts.subtract(counted)
            self._counts = +self._counts  # without those that nothing counts any more

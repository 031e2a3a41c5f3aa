"""How many requests may wait at once; the rest are told to come again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lokr_serve.errors import QueueFullError


class WaitingRoom:
    """Bounds the requests that were accepted and have no event yet, loading included."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: set[object] = set()

    @contextmanager
    def place(self) -> Iterator[Callable[[], None]]:
        """Hold a place until the block ends, or until the function that it is given is called.

        Raises:
            QueueFullError: All places are taken.
        """
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(self._max_waiting)
        request = object()
        self._waiting.add(request)
        try:
            yield lambda: self._waiting.discard(request)
        finally:
            self._waiting.discard(request)

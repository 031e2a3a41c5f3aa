"""LoadTurns: which load may run, so that loads and the engine get along in one interpreter."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

# How long a load waits for the one before it. Most take a millisecond or two, and side by side
# they would take no less in all but would each compete with the engine for the interpreter.
MAX_TURN_SECONDS = 0.1

# The longest pause after a load: what takes longer than a few milliseconds is spent on bytes,
# outside the interpreter, and does not hold up the engine.
MAX_PAUSE_SECONDS = 0.01


class LoadTurns:
    """Lets loads go one after the other, with pauses while requests are served.

    Every operation of a step takes the interpreter's lock anew, so a step beside one load after
    the other takes twice its time. With pauses a burst of loads takes longer instead; a load by
    itself never waits.
    """

    def __init__(self, *, share: float, is_serving: Callable[[], bool]) -> None:
        """Bind what tells whether requests are served; it is asked from the loads' threads.

        Args:
            share: The part of the time that loads which take turns may take meanwhile, above 0
                and at most 1; long ones take more, as no pause exceeds MAX_PAUSE_SECONDS.
            is_serving: Whether requests are served now.
        """
        self._pauses = 1 / share - 1  # for each second of loading
        self._is_serving = is_serving
        self._lock = threading.Lock()
        self._free_at = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run the block when it is its turn; who waited long enough runs beside the others."""
        if not self._lock.acquire(timeout=MAX_TURN_SECONDS):
            yield
            return
        try:
            self._pause()
            began = monotonic()
            yield
            ended = monotonic()
            self._free_at = ended + min(MAX_PAUSE_SECONDS, (ended - began) * self._pauses)
        finally:
            self._lock.release()

    def _pause(self) -> None:
        pause = self._free_at - monotonic()
        if pause > 0 and self._is_serving():
            sleep(pause)

"""Pace: how fast something went lately, and so how long it will take."""

import random
import time
from collections import deque
from collections.abc import Callable

WINDOW = 32  # events that the pace is taken from
DEFAULT_SECONDS = 1.0  # while nothing is known
MIN_SECONDS, MAX_SECONDS = 0.5, 60.0
JITTER = 0.25  # at most so much is added, so that those who were refused together come back apart


class Pace:
    """How often something happened of late; what stands still becomes slower by itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=WINDOW)

    def note(self) -> None:
        """Note that it happened."""
        self._times.append(self._clock())

    def seconds(self, num_events: float) -> float:
        """Return about how long so many events will take, for someone who is to come again."""
        if not self._times:
            return jittered(DEFAULT_SECONDS)
        elapsed = self._clock() - self._times[0]
        estimate = num_events * elapsed / len(self._times)
        return jittered(min(max(estimate, MIN_SECONDS), MAX_SECONDS))


def jittered(seconds: float) -> float:
    """Return a time that is no shorter, and another one for everybody."""
    return seconds * random.uniform(1.0, 1.0 + JITTER)

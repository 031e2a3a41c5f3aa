"""Deadline: until when blocking work may go on, and whether anybody still wants it."""

import threading
from dataclasses import dataclass, field
from time import monotonic

from lokr_serve.errors import ShuttingDownError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deadline:
    """A moment that ends work in a thread, unless it is told to stop before."""

    at: float  # monotonic
    stop: threading.Event = field(default_factory=threading.Event)

    def remaining(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: None are.
            ShuttingDownError: The work was told to stop.
        """
        if self.stop.is_set():
            raise ShuttingDownError("the server is shutting down")
        seconds = self.at - monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

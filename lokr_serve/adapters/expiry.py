"""ExpiryTimer: one timer for the deadlines of many adapters."""

import asyncio
import heapq
from collections.abc import Callable


class ExpiryTimer:
    """Calls back with each id whose time has come; an id has one deadline, the last one set."""

    def __init__(self, on_due: Callable[[str], None]) -> None:
        self._on_due = on_due
        self._deadlines: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may hold deadlines that were set again
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_pending(self) -> int:
        """Entries that wait in memory, superseded ones included."""
        return len(self._heap)

    def set(self, adapter_id: str, at: float) -> None:
        """Set the deadline of an id, in the time of the event loop."""
        self._deadlines[adapter_id] = at
        heapq.heappush(self._heap, (at, adapter_id))
        if len(self._heap) > 2 * len(self._deadlines) + 16:  # mostly deadlines set again
            self._heap = [(due, name) for name, due in self._deadlines.items()]
            heapq.heapify(self._heap)
        self._arm()

    def discard(self, adapter_id: str) -> None:
        """Forget the deadline of an id, if it has one."""
        self._deadlines.pop(adapter_id, None)

    def close(self) -> None:
        """Stop the timer."""
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._heap[0][0], self._fire)

    def _fire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            at, adapter_id = heapq.heappop(self._heap)
            if self._deadlines.get(adapter_id) == at:
                del self._deadlines[adapter_id]
                self._on_due(adapter_id)
        self._arm()

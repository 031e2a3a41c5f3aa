"""WaitingRoom: how many requests may wait, how many bytes they may hold, and who must go."""

import asyncio
import time
from collections.abc import Callable, Iterable
from enum import Enum

from lokr_serve.access.pace import Pace
from lokr_serve.errors import QueueFullError
from lokr_serve.metrics import Metrics
from lokr_serve.types import Priority


class ShedReason(Enum):
    """Why a request ends before an engine has begun with it."""

    QUEUE_FULL = "queue_full"  # it came to a full queue
    SHED = "shed"  # it made way for a more urgent one
    DEADLINE = "deadline"
    LIMIT = "limit"  # of its client, or of one of its adapters


class Place:
    """The place of one request that waits."""

    def __init__(self, room: "WaitingRoom", priority: Priority) -> None:
        self._room = room
        self.priority = priority
        self.num_bytes = 0
        self.is_taken = False  # from its entry until it leaves or is shed
        # Resolves to the seconds after which the request may come again, if it must go.
        self.shed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def grow(self, num_bytes: int) -> None:
        """Note that the request holds so many bytes more.

        Raises:
            QueueFullError: There is no room for them; the place is as it was.
        """
        if self.is_taken:
            self._room.grow(self, num_bytes)

    def leave(self) -> None:
        """Give the place back, if the request still has it."""
        self._room.leave(self)


class WaitingRoom:
    """Places for requests that were accepted and that no engine has begun with.

    When it is full, a newcomer takes the place of the youngest of the lowest class below its own;
    if there is none, it is refused. So a class may take every place that no higher one wants.
    Lives on the event loop; an operation takes constant time, and as much for each that must go.
    """

    def __init__(
        self,
        *,
        max_waiting: int,
        max_bytes: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._places: dict[Priority, dict[Place, None]] = {  # the oldest first
            priority: {} for priority in sorted(Priority, key=lambda one: one.value)
        }
        self._class_bytes = dict.fromkeys(Priority, 0)
        self._pace = Pace(clock)

    def __len__(self) -> int:
        return sum(map(len, self._places.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes that those hold who wait."""
        return sum(self._class_bytes.values())

    def enter(self, priority: Priority, num_bytes: int) -> Place:
        """Take a place for a request that holds so many bytes.

        Raises:
            QueueFullError: All places are taken by requests that are no less urgent.
        """
        place = Place(self, priority)
        self._make_room(place, num_places=1, num_bytes=num_bytes)
        self._places[priority][place] = None
        place.is_taken = True
        self._count_bytes(place, num_bytes)
        return place

    def grow(self, place: Place, num_bytes: int) -> None:
        """Count more bytes of a request that waits; what :meth:`Place.grow` is for."""
        self._make_room(place, num_places=0, num_bytes=num_bytes)
        self._count_bytes(place, num_bytes)

    def leave(self, place: Place) -> None:
        """Free a place, unless it is free already."""
        if place.is_taken:
            self._pace.note()
            self._remove(place)

    def _retry_seconds(self) -> float:
        """Return about how long it will take until all have left who wait now."""
        return self._pace.seconds(len(self))

    def _make_room(self, place: Place, *, num_places: int, num_bytes: int) -> None:
        """Shed what is less urgent until it fits; a request that is alone always does."""
        others = len(self) - place.is_taken
        if not others:
            return
        excess_places = len(self) + num_places - self._max_waiting
        excess_bytes = self.num_bytes + num_bytes - self._max_bytes
        lower = [priority for priority in self._places if priority.value < place.priority.value]
        if excess_places > sum(len(self._places[priority]) for priority in lower):
            raise self._full(f"the queue is full, with {len(self)} waiting")
        if excess_bytes > sum(self._class_bytes[priority] for priority in lower):
            raise self._full(
                f"the queue is full, with {self.num_bytes} bytes held by those who wait"
            )
        while excess_places > 0 or excess_bytes > 0:
            victim = self._youngest(lower)
            excess_places -= 1
            excess_bytes -= victim.num_bytes
            self._remove(victim)
            self._metrics.requests_shed.labels(ShedReason.SHED.value).inc()
            victim.shed.set_result(self._retry_seconds())

    def _youngest(self, classes: Iterable[Priority]) -> Place:
        """Return the youngest of the first of some classes that has anyone."""
        places = next(places for one in classes if (places := self._places[one]))
        return next(reversed(places))

    def _full(self, problem: str) -> QueueFullError:
        self._metrics.requests_shed.labels(ShedReason.QUEUE_FULL.value).inc()
        return QueueFullError(problem, self._retry_seconds())

    def _remove(self, place: Place) -> None:
        self._count_bytes(place, -place.num_bytes)
        del self._places[place.priority][place]
        place.is_taken = False

    def _count_bytes(self, place: Place, num_bytes: int) -> None:
        place.num_bytes += num_bytes
        self._class_bytes[place.priority] += num_bytes

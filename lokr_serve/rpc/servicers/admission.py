"""Admission: who may send a request now, and where it waits until an engine begins with it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from lokr_serve.access.limits import Limits
from lokr_serve.access.waiting_room import Place, ShedReason, WaitingRoom
from lokr_serve.config import ImageSettings, LimitSettings, TextSettings
from lokr_serve.errors import DeadlineError, NotPermittedError, QueueFullError
from lokr_serve.interruption import Interruption
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.types import Caller, Priority

# A client whose deadline has come cancels the call, which may be here before it has come here.
EARLY_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """What is asked of a request at the door."""

    priority: Priority
    adapter_ids: Sequence[str]  # registered ones, each once
    num_bytes: int  # that it holds already
    time_left: Callable[[], float | None]  # seconds until its deadline, 0 once that has passed


class Visit:
    """A request that was let in, and waits until :meth:`begin`."""

    def __init__(
        self, caller: Caller, place: Place, stop_waiting: Callable[[], None], seconds: float | None
    ) -> None:
        self.client = caller.name
        self.accepted_at = time.monotonic()
        self.deadline = math.inf if seconds is None else self.accepted_at + seconds
        self._place = place
        self._stop_waiting = stop_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether it has a place still."""
        return self._place.is_taken

    def hold(self, num_bytes: int) -> None:
        """Note that the request holds so many bytes more.

        Raises:
            QueueFullError: The requests that wait hold too much already.
        """
        self._place.grow(num_bytes)

    def begin(self) -> None:
        """Note that the engine has begun with the request."""
        self._place.leave()
        self._stop_waiting()


class Admission:
    """Lets requests for one engine in; lives on the event loop."""

    def __init__(
        self, engine: TextSettings | ImageSettings, limits: LimitSettings, metrics: Metrics
    ) -> None:
        self._metrics = metrics
        self._limits = Limits(limits, max_queue=engine.max_queue, metrics=metrics)
        self._room = WaitingRoom(
            max_waiting=engine.max_queue, max_bytes=engine.max_queue_bytes, metrics=metrics
        )
        for reason in ShedReason:  # so that every series is there from the start
            metrics.requests_shed.labels(reason.value)

    @asynccontextmanager
    async def visit(self, arrival: Arrival) -> AsyncIterator[Visit]:
        """Count a request and give it a place to wait; both are given back on every way out.

        Raises:
            NotPermittedError: It is more urgent than its client may be.
            LimitExceededError: Its client, or an adapter, has what it may have already.
            QueueFullError: There is no place for it, or a more urgent one took its place.
        """
        caller = caller_variable.get()
        _require_priority(caller, arrival.priority)
        self._limits.check(caller, arrival.adapter_ids)
        place = self._room.enter(arrival.priority, arrival.num_bytes)
        with ExitStack() as held:
            held.callback(place.leave)
            stop_waiting = held.enter_context(self._limits.counting(caller, arrival.adapter_ids))
            visit = Visit(caller, place, stop_waiting, arrival.time_left())
            held.enter_context(self._counting_late(visit, arrival.time_left))
            async with Interruption(place.shed, _shed):
                yield visit

    @contextmanager
    def _counting_late(self, visit: Visit, time_left: Callable[[], float | None]) -> Iterator[None]:
        """Count a request that ends while it waits, because its deadline has passed."""
        try:
            yield
        except (asyncio.CancelledError, DeadlineError):
            left = time_left()
            if visit.is_waiting and left is not None and left <= EARLY_SECONDS:
                self._metrics.requests_shed.labels(ShedReason.DEADLINE.value).inc()
            raise

    def refuse_late(self, seconds_left: float | None) -> None:
        """Refuse a request that waited for too long before it came here; the first thing to ask.

        Raises:
            DeadlineError: Its deadline had passed.
        """
        if seconds_left is not None and seconds_left <= 0:
            self._metrics.requests_shed.labels(ShedReason.DEADLINE.value).inc()
            raise DeadlineError("the deadline had passed when the request arrived")


def _require_priority(caller: Caller, priority: Priority) -> None:
    most = caller.limits.max_priority
    if priority.value > most.value:
        raise NotPermittedError(
            f"client {caller.name!r} may not ask for priority {priority.name}, only for up to "
            f"{most.name}"
        )


def _shed(retry_seconds: float) -> QueueFullError:
    return QueueFullError("more urgent requests took the request's place", retry_seconds)

"""Gathering: where the threads of requests meet the engine's thread, call by call."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from lokr_core import AdapterMix, Apply
from lokr_serve.errors import EngineStoppedError
from lokr_serve.image.calls import Call
from lokr_serve.image.turns import Turns


class RequestCancelledError(Exception):
    """Ends the thread of a request that nobody waits for any more; no caller ever sees it."""


class Member:
    """A live request, as the gathering sees it."""

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner  # whose share of the rows its calls count against
        self.is_aside = False  # busy with what makes no call soon, such as encoding
        self.num_calls = 0  # that wait or run
        self.ending: Exception | None = None  # what its next call is to raise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PendingCall:
    """A call with the mix that its rows carry, and where its output goes."""

    member: Member
    call: Call
    mix: AdapterMix
    apply: Apply
    arrived_at: float
    output: Future[object] = field(default_factory=Future)

    @property
    def group(self) -> Hashable:
        """What is equal in calls that may join; the call itself, if none may."""
        return self if self.call.joining is None else self.call.joining.key

    @property
    def is_alone(self) -> bool:
        """Whether no other call may join."""
        return self.call.joining is None

    @property
    def num_rows(self) -> int:
        """Rows that it brings."""
        return self.call.num_rows

    @property
    def owner(self) -> Hashable:
        """Whose share of the rows it counts against."""
        return self.member.owner


class Gathering:
    """The calls that wait for the engine's thread, and who may still make one.

    A member is busy from when it joins, or has its output, until it calls again, steps aside or
    leaves: while someone is busy, the engine may wait for one more call. So whatever ends a
    request takes it out of the count, and nobody waits for it.
    """

    def __init__(self, turns: Turns, clock: Callable[[], float] = time.monotonic) -> None:
        self._turns = turns
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[PendingCall] = []  # the oldest first
        self._running: list[PendingCall] = []  # taken, and not yet handed back
        self._busy: set[Member] = set()
        self._free_at = clock()
        self._is_closed = False

    @contextmanager
    def taking_part(self, member: Member) -> Iterator[None]:
        """Count a request as live inside the context; called on its thread."""
        with self._changed:
            self._busy.add(member)
        try:
            yield
        finally:
            with self._changed:
                self._leave(member)

    @contextmanager
    def aside(self, member: Member) -> Iterator[None]:
        """Have nobody wait for a request inside the context; it may still call."""
        was_aside = member.is_aside
        self.step_aside(member)
        try:
            yield
        finally:
            with self._changed:
                member.is_aside = was_aside
                if not was_aside:
                    self._busy.add(member)

    def step_aside(self, member: Member) -> None:
        """Have nobody wait for a request any more; it may still call."""
        with self._changed:
            member.is_aside = True
            self._leave(member)

    def run(
        self, member: Member, calls: Sequence[Call], mix: AdapterMix, apply: Apply
    ) -> list[object]:
        """Return the outputs of calls that do not depend on each other.

        Called on the member's thread, which waits until all of them have ended.

        Raises:
            Exception: What one of the calls raised, even alone, or what ends the member.
        """
        arrived_at = self._clock()
        pending = [
            PendingCall(member=member, call=call, mix=mix, apply=apply, arrived_at=arrived_at)
            for call in calls
        ]
        with self._changed:
            self.check(member)
            if self._is_closed:
                raise stopped()
            member.num_calls = len(pending)
            self._waiting += pending
            self._leave(member)
        wait([call.output for call in pending])
        self.check(member)
        return [call.output.result() for call in pending]

    def check(self, member: Member) -> None:
        """Raise what is to end a request, if anything is."""
        if member.ending is not None:
            raise member.ending

    def dismiss(self, member: Member, error: Exception) -> None:
        """End a request: its call that waits, or its next one, raises the error."""
        with self._changed:
            if member.ending is None:
                member.ending = error
            ended = [pending for pending in self._waiting if pending.member is member]
            self._waiting = [pending for pending in self._waiting if pending.member is not member]
            self._changed.notify_all()
        for pending in ended:
            pending.output.set_exception(error)

    def take(self) -> list[PendingCall]:
        """Return the calls to run now, waiting for them; none once closed."""
        with self._changed:
            self._free_at = self._clock()
            while not self._is_closed:
                now = self._clock()
                batch = self._turns.next_batch(
                    self._waiting, is_complete=not self._busy, free_at=self._free_at, now=now
                )
                if batch:
                    self._waiting = [call for call in self._waiting if call not in batch]
                    self._running = list(batch)
                    return batch
                self._changed.wait(self._seconds_left(now))
        return []

    def hand_back(self, pending: PendingCall, output: object) -> None:
        """Give a call its output."""
        self._count_busy(pending)
        pending.output.set_result(output)

    def fail(self, pending: PendingCall, error: Exception) -> None:
        """Have a call raise an error."""
        self._count_busy(pending)
        pending.output.set_exception(error)

    def close(self) -> None:
        """Let the engine's thread take no more calls."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Have every call raise that the engine has stopped; on its thread, as its last act."""
        with self._changed:
            self._is_closed = True
            calls = self._running + self._waiting
            self._running, self._waiting = [], []
        for pending in calls:
            pending.output.set_exception(stopped())

    def _leave(self, member: Member) -> None:
        """Note, with the lock held, that a member makes no call for now."""
        self._busy.discard(member)
        self._changed.notify_all()

    def _count_busy(self, pending: PendingCall) -> None:
        """Count a member that gets its output, before its thread can know of it."""
        with self._changed:
            self._running.remove(pending)
            pending.member.num_calls -= 1
            if not pending.member.num_calls and not pending.member.is_aside:
                self._busy.add(pending.member)

    def _seconds_left(self, now: float) -> float | None:
        if not self._waiting:
            return None
        return max(self._turns.due_at(self._waiting, self._free_at) - now, 0.0)


def stopped() -> EngineStoppedError:
    """Return the error of a request that the engine's end has cut off."""
    return EngineStoppedError("the engine stopped before the request had finished")

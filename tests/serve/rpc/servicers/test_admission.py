"""Admission: whoever is let in is counted, and given back on every way out."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

import pytest

from lokr_serve.config import LimitSettings, TextSettings
from lokr_serve.errors import (
    DeadlineError,
    InvalidRequestError,
    LimitExceededError,
    NotPermittedError,
    QueueFullError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.servicers.admission import Admission, Arrival, Visit
from lokr_serve.types import Caller, ClientLimits, Priority

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def arrival(priority: Priority = NORMAL, *adapters: str, **values: Any) -> Arrival:
    """Return a small request without a deadline, unless it is said otherwise."""
    fields = {"num_bytes": 1, "time_left": lambda: None, **values}
    return Arrival(priority=priority, adapter_ids=adapters, **fields)


class Scene:
    """An admission, and its metrics."""

    def __init__(self, limits: LimitSettings | None = None, **settings: Any) -> None:
        self.metrics = Metrics(version="test")
        text = TextSettings.model_validate({"max_queue": 1, **settings})
        self.admission = Admission(text, limits or LimitSettings(), self.metrics)

    async def enter(self, held: AsyncExitStack, wanted: Arrival) -> Visit:
        """Let a request in that lasts as long as ``held``."""
        return await held.enter_async_context(self.admission.visit(wanted))

    async def is_free(self, wanted: Arrival | None = None) -> bool:
        """Whether a request would be let in."""
        try:
            async with self.admission.visit(wanted or arrival()):
                return True
        except (LimitExceededError, QueueFullError):
            return False

    def num_shed(self, reason: str) -> float | None:
        """Return how many requests have ended for a reason."""
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value("lokr_serve_requests_shed_total", labels)


@contextmanager
def as_caller(caller: Caller) -> Iterator[None]:
    """Have a client make the calls of the block."""
    token = caller_variable.set(caller)
    yield
    caller_variable.reset(token)


@pytest.fixture
def team() -> Iterator[Caller]:
    """A client that may not be urgent, which makes the calls of the test."""
    limits = ClientLimits(max_requests=1, max_priority=NORMAL)
    caller = Caller(name="team", permissions=frozenset(), limits=limits)
    with as_caller(caller):
        yield caller


async def test_a_request_that_runs_has_left_the_queue() -> None:
    """It is bounded by the engine then; its client's count holds on until it has ended."""
    scene = Scene(LimitSettings(client_requests=2))
    async with AsyncExitStack() as held:
        visit = await scene.enter(held, arrival())
        was_free = await scene.is_free()
        visit.begin()
        await scene.enter(held, arrival())
        with pytest.raises(LimitExceededError):
            await scene.enter(held, arrival())

    assert not was_free
    assert await scene.is_free()


async def test_a_request_that_must_make_way_ends_as_a_full_queue_does() -> None:
    """Its block is cut off where it waits, and all that it had is free."""
    scene = Scene(LimitSettings(adapter_requests=1))
    is_cut_off = False

    async def wait() -> None:
        nonlocal is_cut_off
        async with scene.admission.visit(arrival(LOW, "poet")):
            try:
                await asyncio.sleep(60)
            finally:
                is_cut_off = True

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    async with AsyncExitStack() as held:
        await scene.enter(held, arrival(HIGH))
        with pytest.raises(QueueFullError, match="more urgent requests") as caught:
            await waiting
        assert is_cut_off
        assert caught.value.retry_seconds > 0
        assert not await scene.is_free()

    assert await scene.is_free(arrival(LOW, "poet"))
    assert (scene.num_shed("shed"), scene.num_shed("queue_full")) == (1, 1)


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    """A client that goes away is no reason to refuse the next one."""
    scene = Scene(LimitSettings(client_requests=1))

    async def wait() -> None:
        async with scene.admission.visit(arrival()):
            await asyncio.sleep(60)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting

    assert await scene.is_free()
    assert scene.num_shed("deadline") == 0


async def test_bytes_that_a_request_comes_to_hold_may_be_too_many() -> None:
    """An image that is decoded while others wait must find room, or end."""
    scene = Scene(max_queue=9, max_queue_bytes=100)
    async with AsyncExitStack() as held:
        await scene.enter(held, arrival(num_bytes=60))
        visit = await scene.enter(held, arrival(num_bytes=30))
        with pytest.raises(QueueFullError, match="with 90 bytes held"):
            visit.hold(20)


@pytest.mark.parametrize("seconds_left", [0.0, -1.0])
def test_a_request_that_came_too_late_is_refused_and_counted(seconds_left: float) -> None:
    """Nobody waits for it any more."""
    scene = Scene()

    with pytest.raises(DeadlineError):
        scene.admission.refuse_late(seconds_left)
    assert scene.num_shed("deadline") == 1


@pytest.mark.parametrize("seconds_left", [None, 5.0])
def test_a_request_in_time_is_not_refused(seconds_left: float | None) -> None:
    """Nor one without a deadline."""
    scene = Scene()
    scene.admission.refuse_late(seconds_left)

    assert scene.num_shed("deadline") == 0


async def test_a_deadline_counts_only_while_the_request_waits() -> None:
    """What ends in the middle was not shed: it ran."""
    scene = Scene(max_queue=2)
    left = [5.0]
    with suppress(asyncio.CancelledError):
        async with scene.admission.visit(arrival(time_left=lambda: left[0])) as visit:
            visit.begin()
            left[0] = 0.0
            raise asyncio.CancelledError
    num_shed_running = scene.num_shed("deadline")
    left[0] = 5.0
    with suppress(asyncio.CancelledError):
        async with scene.admission.visit(arrival(time_left=lambda: left[0])) as visit:
            left[0] = 0.0
            raise asyncio.CancelledError

    assert (num_shed_running, scene.num_shed("deadline")) == (0, 1)
    assert visit.deadline == pytest.approx(visit.accepted_at + 5.0)


@pytest.mark.parametrize(
    ("error", "num_shed"),
    [
        (asyncio.CancelledError(), 1),
        (DeadlineError("too late"), 1),
        (InvalidRequestError("prompt", "is too long"), 0),
        (RuntimeError("a bug"), 0),
    ],
)
async def test_what_fails_by_itself_just_before_its_deadline_was_not_shed(
    error: BaseException, num_shed: int
) -> None:
    """Else whoever sends bad requests with short deadlines makes the server look overloaded."""
    scene = Scene()
    with suppress(type(error)):
        async with scene.admission.visit(arrival(time_left=lambda: 0.1)):
            raise error

    assert scene.num_shed("deadline") == num_shed


async def test_a_client_may_not_be_more_urgent_than_it_is_allowed(team: Caller) -> None:
    """To lower it without a word would be to answer another question."""
    scene = Scene()

    with pytest.raises(NotPermittedError, match="'team' may not ask for priority HIGH, only for"):
        await scene.is_free(arrival(HIGH))
    assert await scene.is_free(arrival(NORMAL))


async def test_a_request_counts_for_the_client_that_makes_it(team: Caller) -> None:
    """Its own limits go before those of the settings."""
    scene = Scene(max_queue=5)
    async with AsyncExitStack() as held:
        visit = await scene.enter(held, arrival())
        with pytest.raises(LimitExceededError, match="client 'team'"):
            await scene.enter(held, arrival())

    assert visit.client == "team"
    assert scene.num_shed("limit") == 1


async def come_to_hold(scene: Scene, num_bytes: int) -> None:
    """Make a request that holds more once it was let in, and then waits."""
    async with scene.admission.visit(arrival(LOW)) as visit:
        visit.hold(num_bytes)
        await asyncio.sleep(60)


async def test_a_request_refused_after_it_was_let_in_has_used_nothing_of_its_rate() -> None:
    """Neither one whose image finds no room, nor one that makes way for another."""
    scene = Scene(LimitSettings(client_rate=0.001), max_queue=2, max_queue_bytes=100)
    another, patient = (Caller(name=name, permissions=frozenset()) for name in ("x", "patient"))
    async with AsyncExitStack() as held:
        with as_caller(another):
            await scene.enter(held, arrival(HIGH, num_bytes=60))
        with as_caller(patient):
            for _ in range(2):
                with pytest.raises(QueueFullError, match="with 61 bytes held"):
                    await come_to_hold(scene, 50)
            waiting = asyncio.create_task(come_to_hold(scene, 1))
            await asyncio.sleep(0)
        with as_caller(Caller(name="y", permissions=frozenset())):
            await scene.enter(held, arrival(HIGH))
        with pytest.raises(QueueFullError, match="more urgent requests"):
            await waiting

    with as_caller(patient):
        assert await scene.is_free()
        assert not await scene.is_free()  # now it has used it


async def test_a_request_that_a_full_queue_refuses_has_used_nothing() -> None:
    """Else who was told to come again would be refused for having come."""
    scene = Scene(LimitSettings(client_rate=0.001, client_requests=9), max_queue=1)
    async with AsyncExitStack() as held:
        held.enter_context(as_caller(Caller(name="another", permissions=frozenset())))
        await scene.enter(held, arrival())
        with as_caller(Caller(name="patient", permissions=frozenset())):
            for _ in range(3):
                with pytest.raises(QueueFullError):
                    await scene.enter(held, arrival())
    with as_caller(Caller(name="patient", permissions=frozenset())):
        assert await scene.is_free()

"""Requests that wait in line for the engine: how they leave it, and who is next."""

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from lokr_serve.errors import DeadlineError
from lokr_serve.metrics import Metrics
from tests.serve.image.engines import Gate, World, ask, before_forward, generation, running, value


async def test_a_request_that_waits_in_line_can_be_cancelled(world: World) -> None:
    """It has no thread yet, and leaves at once although the engine is busy."""
    gate = Gate()
    metrics = Metrics(version="test")
    async with running(world, metrics, max_requests=1) as engine:
        with before_forward(world.denoiser, gate):
            running_ = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            waiting = asyncio.create_task(ask(engine, generation(world, 2)))
            await asyncio.sleep(0)
            num_waiting = value(metrics, "requests_waiting")
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            num_left = value(metrics, "requests_waiting")
            gate.open()
            answer = await running_

    assert (num_waiting, num_left) == (1, 0)
    assert not answer.errors


async def test_a_request_whose_deadline_passes_in_line_is_never_begun(world: World) -> None:
    """Nobody waits for it any more, and those behind it do."""
    gate = Gate()
    async with running(world, max_requests=1) as engine:
        with before_forward(world.denoiser, gate):
            first = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            late = replace(generation(world, 2), deadline=time.monotonic())
            tasks = [asyncio.create_task(ask(engine, one)) for one in (late, generation(world, 3))]
            await asyncio.sleep(0)
            gate.open()
            refused, answer = await asyncio.gather(*tasks)
            await first

    assert [type(error) for error in refused.errors] == [DeadlineError]
    assert not refused.events
    assert not answer.errors


async def test_a_client_is_not_charged_for_what_came_too_late(world: World) -> None:
    """Else whoever has lost a request waits longer for the next, and loses that one, too."""
    gate = Gate()
    began: list[str] = []

    async def send(client: str, deadline: float = math.inf) -> None:
        request = replace(generation(world, 2), client=client, deadline=deadline)
        async for _ in engine.generate(request, lambda: began.append(client)):
            pass

    async with running(world, max_requests=1) as engine:
        with before_forward(world.denoiser, gate):
            first = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            late = asyncio.create_task(send("unlucky", time.monotonic()))
            tasks = [asyncio.create_task(send(client)) for client in ("unlucky", "other")]
            await asyncio.sleep(0)
            gate.open()
            await asyncio.gather(first, *tasks)

    with pytest.raises(DeadlineError):
        await late
    assert began == ["unlucky", "other"]


async def test_a_request_is_told_when_a_thread_has_it(world: World) -> None:
    """It counts as waiting until then, and no longer, however long its first step takes."""
    gate = Gate()
    began: list[int] = []

    async def send(number: int) -> None:
        async for _ in engine.generate(generation(world, number), lambda: began.append(number)):
            assert number in began, "before any event"

    async with running(world, max_requests=1) as engine:
        with before_forward(world.denoiser, gate):
            tasks = [asyncio.create_task(send(number)) for number in (1, 2)]
            await gate.reached()
            await asyncio.sleep(0)
            began_first = list(began)
            gate.open()
            await asyncio.gather(*tasks)

    assert began_first == [1]
    assert began == [1, 2]

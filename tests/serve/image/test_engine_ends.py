"""How requests end: refused, cancelled, failed or stopped, and what becomes of the others."""

import asyncio
import threading
from bisect import bisect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from lokr_serve.errors import (
    EngineStoppedError,
    InvalidRequestError,
)
from lokr_serve.image.engine import ImageEngine
from lokr_serve.image.pipelines import PipelineRun
from lokr_serve.image.plan import ImagePlan
from lokr_serve.types import ImageFormat, ImageProgress, Priority
from tests.serve.image.engines import (
    LONG,
    Answer,
    Gate,
    World,
    ask,
    assert_equal,
    before_forward,
    build,
    generation,
    running,
    stock,
)

EULER = "EulerDiscreteScheduler"


def has_room(engine: ImageEngine, world: World, num_spaces: int, **params: Any) -> bool:
    """Return whether a JPEG can carry a request whose prompt is that long."""
    output = {"format": ImageFormat.JPEG, "metadata": True}
    request = generation(world, 9, prompt="cat" + " " * num_spaces, output=output, **params)
    try:
        engine.check(request)
    except InvalidRequestError:
        return False
    return True


def test_metadata_must_fit_every_image_of_a_request(world: World) -> None:
    """Seed 10 is longer than 9: the second image would fail once both were made."""
    engine = build(world)
    most = bisect(range(65_500), 0, key=lambda n: not has_room(engine, world, n)) - 1

    assert has_room(engine, world, most)
    assert not has_room(engine, world, most, num_images=2)


def test_a_size_that_its_format_cannot_have_is_refused(world: World) -> None:
    """A panorama would fail once it was made."""
    engine, webp = build(world), {"format": ImageFormat.WEBP}

    engine.check(generation(world, width=16_384, height=8))
    with pytest.raises(InvalidRequestError, match="16383 pixels to a side"):
        engine.check(generation(world, width=16_384, height=8, output=webp))


async def test_cancelling_ends_the_work_at_the_next_step(world: World) -> None:
    """The iterator is closed only when nothing works for the request; the others go on."""
    lasting = generation(world, 1, num_steps=4)
    calls: list[int] = []
    async with running(world) as engine:
        with before_forward(world.denoiser, lambda kwargs: calls.append(len(kwargs["sample"]))):
            stream = engine.generate(generation(world, 2, num_steps=500))
            async for event in stream:
                if isinstance(event, ImageProgress):
                    break
            other = asyncio.create_task(ask(engine, lasting))
            await stream.aclose()
            num_calls = calls.count(2)
            answer = await other
        is_idle = not engine._live

    assert is_idle
    assert num_calls < 100
    assert_equal(answer.latents, stock(world, lasting).latents)


async def test_a_cancelled_request_is_closed_after_the_forward_that_it_is_in(world: World) -> None:
    """What it holds, such as its adapters, is in use until then; so its end waits."""
    gate = Gate()
    async with running(world) as engine:
        with before_forward(world.denoiser, gate):
            task = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            task.cancel()
            _, pending = await asyncio.wait({task}, timeout=0.05)
            assert pending == {task}
            gate.open()
            with suppress(asyncio.CancelledError):
                await task

    assert task.cancelled()


async def test_a_more_urgent_request_goes_first(world: World) -> None:
    """However long the others have waited."""
    gate = Gate()
    began: list[str] = []

    async def send(name: str) -> None:
        request = generation(world, 1)
        urgent = replace(request.request, priority=Priority[name])
        request = replace(request, request=urgent)
        async for _ in engine.generate(request, lambda: began.append(name)):
            pass

    async with running(world, max_requests=1) as engine:
        with before_forward(world.denoiser, gate):
            first = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            tasks = [asyncio.create_task(send(name)) for name in ("LOW", "NORMAL", "HIGH")]
            await asyncio.sleep(0)
            gate.open()
            await asyncio.gather(first, *tasks)

    assert began == ["HIGH", "NORMAL", "LOW"]


async def test_stopping_ends_every_request_with_an_error(world: World) -> None:
    """Those that run, in a call or not, and those in line; and later ones are refused."""
    gate = Gate()
    async with running(world, max_requests=2) as engine:
        with before_forward(world.denoiser, gate):
            tasks = [
                asyncio.create_task(ask(engine, generation(world, seed, num_steps=50)))
                for seed in range(4)
            ]
            await gate.reached()
            stop = asyncio.create_task(engine.stop())
            await asyncio.sleep(0)
            gate.open()
            answers = await asyncio.gather(*tasks)
            await stop
        late = await ask(engine, generation(world, 9))

    assert [type(error) for answer in answers for error in answer.errors] == [
        EngineStoppedError
    ] * 4
    assert [type(error) for error in late.errors] == [EngineStoppedError]
    assert not engine.health().is_alive


async def test_an_engine_that_was_never_started_can_be_stopped(world: World) -> None:
    """What was sent to it gets its end too."""
    engine = build(world)
    task = asyncio.create_task(ask(engine, generation(world, 1)))
    await asyncio.sleep(0)

    await engine.stop()
    answer = await task

    assert [type(error) for error in answer.errors] == [EngineStoppedError]


async def test_a_stuck_step_is_seen_and_can_be_left_behind(world: World) -> None:
    """The watchdog reads how long; stopping gives up after its time and ends the requests."""
    gate = Gate()
    async with running(world) as engine:
        with before_forward(world.denoiser, gate):
            task = asyncio.create_task(ask(engine, generation(world, 1)))
            await gate.reached()
            stuck_seconds = engine.health().stuck_seconds
            with pytest.raises(EngineStoppedError, match="too long"):
                await engine.stop(timeout_seconds=0.01)
            answer = await task
            gate.open()

    assert stuck_seconds > 0
    assert [type(error) for error in answer.errors] == [EngineStoppedError]


def wait_idle(engine: ImageEngine) -> None:
    """Wait until no request runs."""
    workers = engine._workers
    with workers._changed:
        assert workers._changed.wait_for(lambda: not workers._num_running, LONG)


async def test_a_slow_request_holds_up_the_others_for_no_longer_than_the_window(
    world: World,
) -> None:
    """Here its scheduler hangs until the other has finished, which is only after windows."""
    slow, other = generation(world, 1, scheduler=EULER), generation(world, 2)
    is_done = threading.Event()
    async with running(world, gather_seconds=0.001) as engine:
        build_run = engine._factory.build

        def build_slow(plan: ImagePlan, components: Mapping[str, object]) -> PipelineRun:
            run = build_run(plan, components)
            if plan.seeds == (1,):
                step = run.pipeline.scheduler.step

                def hanging(*args: Any, **kwargs: Any) -> Any:
                    assert is_done.wait(LONG)
                    return step(*args, **kwargs)

                run.pipeline.scheduler.step = hanging
            return run

        engine._factory.build = build_slow  # type: ignore[method-assign]
        waiting = asyncio.create_task(ask(engine, slow))
        answer = await ask(engine, other)
        is_done.set()
        slow_answer = await waiting

    assert_equal(answer.latents, stock(world, other).latents)
    assert_equal(slow_answer.latents, stock(world, slow).latents)


async def test_a_reader_that_stops_reading_holds_up_nobody_and_loses_no_image(
    world: World,
) -> None:
    """It gets the last progress that it has not seen, and all of its images."""
    request = generation(world, 1, num_images=2, num_steps=6, output={"preview_interval": 1})
    async with running(world) as engine:
        stream = engine.generate(request)
        first = await anext(stream)
        other = await ask(engine, generation(world, 2, num_steps=12))
        await asyncio.to_thread(wait_idle, engine)
        rest = Answer(events=[event async for event in stream])

    assert isinstance(first, ImageProgress)
    assert not other.errors
    assert [event.step for event in rest.of(ImageProgress)] == [6]
    assert_equal(rest.latents, stock(world, request).latents)

"""Faults: a request that cannot be computed fails alone, and a device that fails ends all."""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from lokr_core import AdapterMix, MixPart
from lokr_serve.errors import (
    DeviceMemoryError,
    EngineStoppedError,
    GenerationFailedError,
    NotFiniteError,
)
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.pipelines import PipelineRun
from lokr_serve.image.plan import ImagePlan
from lokr_serve.metrics import Metrics
from lokr_serve.types import ImagePreview
from tests.serve.image.engines import (
    World,
    ask,
    ask_together,
    assert_equal,
    before_forward,
    generation,
    running,
    stock,
    value,
)

EULER = "EulerDiscreteScheduler"
POISON_STEPS = 7  # of a request with a timestep that no other has
POISON_TIMESTEP = 832.5  # 999 * 5 / 6, its second one


def poisoned(world: World, seed: int = 9) -> ImageGeneration:
    """Return a request whose second call of the denoiser can be told from all others."""
    return generation(world, seed, world.mixes[1], num_steps=POISON_STEPS, scheduler=EULER)


def raising(error: Callable[[], Exception]) -> Callable[[Mapping[str, Any]], None]:
    """Return what raises where a poisoned request is in a forward of the denoiser."""

    def check(kwargs: Mapping[str, Any]) -> None:
        if (kwargs["timestep"] == POISON_TIMESTEP).any():
            raise error()

    return check


async def test_a_request_that_fails_in_a_step_fails_alone(world: World) -> None:
    """The others of its step are run again without it, and get what they get alone."""
    others = [generation(world, seed, world.mixes[seed], num_steps=6) for seed in (1, 2, 3)]
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        with before_forward(world.denoiser, raising(lambda: ValueError("poison"))):
            failed, *answers = await ask_together(engine, [poisoned(world), *others])

    assert [type(error) for error in failed.errors] == [GenerationFailedError]
    assert "request-9" in str(failed.errors[0])
    for request, answer in zip(others, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)
    assert value(metrics, "step_failures_total") > 0


async def test_a_request_that_lacks_memory_alone_is_told_so(world: World) -> None:
    """Sending it again later may help, so it is another error; the others go on."""
    other = generation(world, 1, num_steps=6)
    async with running(world) as engine:
        with before_forward(world.denoiser, raising(lambda: torch.OutOfMemoryError("full"))):
            failed, answer = await ask_together(engine, [poisoned(world), other])

    assert [type(error) for error in failed.errors] == [DeviceMemoryError]
    assert_equal(answer.latents, stock(world, other).latents)


@pytest.mark.parametrize("num_requests", [1, 3])
async def test_memory_that_caches_hold_is_given_back_before_any_request_fails(
    num_requests: int, world: World
) -> None:
    """Merged weights that nobody uses only save time; even a call that is alone is tried again."""
    merges, idle = world.adapted.merges, world.mixes[1]
    merges.put(idle, world.adapted.merge(idle))
    merges.release(idle)
    requests = [generation(world, seed, world.mixes[seed]) for seed in range(num_requests)]
    metrics = Metrics(version="test")

    def check(_: Mapping[str, Any]) -> None:
        if idle in merges:
            raise torch.OutOfMemoryError("full")

    async with running(world, metrics) as engine:
        with before_forward(world.denoiser, check):
            answers = await ask_together(engine, requests)

    assert idle not in merges
    assert value(metrics, "merge_cache_bytes") == 0
    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)


async def test_a_step_that_lacks_memory_is_made_in_smaller_parts(world: World) -> None:
    """A batch that does not fit is no reason for any of its requests to fail."""
    requests = [generation(world, seed, world.mixes[seed]) for seed in range(4)]

    def check(kwargs: Mapping[str, Any]) -> None:
        if len(kwargs["sample"]) > 4:
            raise torch.OutOfMemoryError("full")

    async with running(world) as engine:
        with before_forward(world.denoiser, check):
            answers = await ask_together(engine, requests)

    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)


@pytest.mark.parametrize("preview_interval", [0, 1])
async def test_latents_that_are_not_finite_are_told_and_never_drawn(
    world: World, preview_interval: int
) -> None:
    """A black picture would look like an answer; the others of its steps are not touched."""
    overflowing = AdapterMix((MixPart(ref=world.mixes[1].parts[0].ref, weight=1e300),))
    output = {"preview_interval": preview_interval}
    requests = [generation(world, 9, overflowing, output=output), generation(world, 1)]
    async with running(world) as engine:
        failed, answer = await ask_together(engine, requests)

    assert [type(error) for error in failed.errors] == [NotFiniteError]
    assert "request-9" in str(failed.errors[0])
    assert not failed.of(ImagePreview)
    assert_equal(answer.latents, stock(world, requests[1]).latents)


async def test_pixels_that_are_not_finite_are_told_and_never_drawn(world: World) -> None:
    """A VAE in half precision overflows on latents that are fine, and black would look right."""
    vae: nn.Module = world.loaded.pipeline.components["vae"]
    handle = vae.get_submodule("decoder").register_forward_hook(lambda _, __, out: out * math.inf)
    async with running(world) as engine:
        answer = await ask(engine, generation(world, 1))
    handle.remove()

    assert [type(error) for error in answer.errors] == [NotFiniteError]
    assert "decoded pixels" in str(answer.errors[0])


async def test_a_request_that_dies_between_its_calls_holds_up_nobody(world: World) -> None:
    """Here in its scheduler; the window is a minute, so to wait for the dead would be seen."""
    requests = [generation(world, seed, num_steps=4, scheduler=EULER) for seed in (1, 2)]
    async with running(world) as engine:
        build_run = engine._factory.build

        def build_broken(plan: ImagePlan, components: Mapping[str, object]) -> PipelineRun:
            run = build_run(plan, components)
            if plan.seeds == (1,):
                run.pipeline.scheduler.step = None
            return run

        engine._factory.build = build_broken  # type: ignore[method-assign]
        failed, answer = await ask_together(engine, requests)

    assert [type(error) for error in failed.errors] == [GenerationFailedError]
    assert_equal(answer.latents, stock(world, requests[1]).latents)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
async def test_an_engine_whose_device_fails_ends_every_request(
    component: str, world: World
) -> None:
    """Nothing can be computed any more; health tells so, and nobody is left waiting."""

    def fail(_: Mapping[str, Any]) -> None:
        raise torch.AcceleratorError("the device is gone")

    async with running(world) as engine:
        with before_forward(world.loaded.pipeline.components[component], fail):
            answers = await asyncio.gather(
                *(ask(engine, generation(world, seed)) for seed in range(3))
            )
        await engine.stop()
        health = engine.health()

    assert {type(error) for answer in answers for error in answer.errors} == {EngineStoppedError}
    assert (health.is_alive, health.error) == (False, "AcceleratorError")


async def test_a_device_that_fails_under_a_requests_own_work_ends_the_engine(
    world: World,
) -> None:
    """A scheduler works on the device too, and what it meets there is met by everybody next."""
    async with running(world) as engine:
        build_run = engine._factory.build

        def build_broken(plan: ImagePlan, components: Mapping[str, object]) -> PipelineRun:
            run = build_run(plan, components)
            run.pipeline.scheduler.step = fail
            return run

        def fail(*_: object, **__: object) -> None:
            raise torch.AcceleratorError("the device is gone")

        engine._factory.build = build_broken  # type: ignore[method-assign]
        answer = await ask(engine, generation(world, 1))
        await engine.stop()

    assert [type(error) for error in answer.errors] == [EngineStoppedError]
    assert engine.health().error == "AcceleratorError"

"""The engine: a request gets what it would get alone, and shares its steps with others."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from lokr_core import AdapterMix, Apply
from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.calls import Call
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.image.stand_ins import DenoiserStandIn
from lokr_serve.metrics import Metrics
from lokr_serve.types import (
    ApplyMode,
    GeneratedImage,
    ImageFinished,
    ImageFormat,
    ImagePreview,
    ImageProgress,
    ImageUsage,
    ScheduledFactor,
    WeightSchedule,
)
from tests.serve.image.engines import (
    Answer,
    Gate,
    World,
    all_live,
    ask,
    ask_together,
    assert_equal,
    before_forward,
    build,
    build_world,
    generation,
    image_settings,
    running,
    stock,
    value,
)


def company(world: World) -> list[ImageGeneration]:
    """Return requests that differ in all that may differ within one batch."""
    base, first, second, both = world.mixes
    return [
        generation(world, 1, first, num_steps=3),
        generation(world, 2, second, num_steps=5, scheduler="EulerDiscreteScheduler"),
        generation(world, 3, base, num_steps=4, scheduler="DPMSolverMultistepScheduler"),
        generation(world, 4, both, num_steps=2, guidance_scale=3.5, num_images=2),
        generation(world, 5, both, num_steps=3, scheduler="HeunDiscreteScheduler"),
        generation(
            world,
            6,
            first,
            num_steps=3,
            guidance_scale=0.0,
            scheduler="EulerAncestralDiscreteScheduler",
        ),
    ]


async def test_requests_that_share_steps_get_what_they_get_alone(world: World) -> None:
    """The whole point: mixes, steps, schedulers, guidance and images differ within a batch."""
    requests = company(world)
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        answers = await ask_together(engine, requests)

    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)
    rows = sum(2 * n for n in (4, 5, 4, 2 * 3, 5)) + 3  # PNDM runs one call more than its steps
    assert value(metrics, "step_rows_sum") == rows
    # As many forwards as the longest has calls, and one where a prompt was encoded a call later.
    assert value(metrics, "step_rows_count") <= 5 + 1


async def test_a_request_that_joins_on_the_way_gets_what_it_gets_alone(world: World) -> None:
    """Requests are at other steps than those that were there before, in one forward."""
    _, first, second, _ = world.mixes
    early = generation(world, 1, first, num_steps=6, scheduler="EulerDiscreteScheduler")
    late = generation(world, 2, second, num_steps=4, scheduler="EulerDiscreteScheduler")
    late_answers: list[asyncio.Task[Answer]] = []
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        events = []
        gate = Gate()
        with ExitStack() as stack:
            async for event in engine.generate(early):
                events.append(event)
                if isinstance(event, ImageProgress) and not late_answers:
                    stack.enter_context(before_forward(world.denoiser, gate))
                    late_answers.append(asyncio.create_task(ask(engine, late)))
                    await all_live(engine, 2)
                    gate.open()
        (answer,) = await asyncio.gather(*late_answers)

    assert_equal(Answer(events=events).latents, stock(world, early).latents)
    assert_equal(answer.latents, stock(world, late).latents)
    assert value(metrics, "step_rows_count") < 10


@pytest.mark.parametrize(
    ("name", "num_calls"),
    [
        ("stable-diffusion-xl", 1),
        ("stable-diffusion-3", 1),
        ("flux", 1),
        ("flux2", 1),
        ("qwen-image", 1),
        ("z-image", 2),  # prompts are longer than no prompt, and padded to other lengths
    ],
)
async def test_every_family_shares_its_steps(
    name: str, num_calls: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """UNets and transformers, with one call for guidance, two or none."""
    world = build_world(tmp_path_factory.mktemp(name), name)
    requests = [
        generation(world, seed, mix, num_steps=2 + seed % 2) for seed, mix in enumerate(world.mixes)
    ]
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        answers = await ask_together(engine, requests)

    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)
    assert value(metrics, "step_rows_count") <= num_calls * (3 + 1)  # as above


async def test_prompts_of_several_lengths_share_steps(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Qwen-Image pads no prompt; the shorter ones are padded here, and what is padded is hidden."""
    world = build_world(tmp_path_factory.mktemp("qwen"), "qwen-image")
    requests = [
        generation(
            world,
            seed,
            mix,
            prompt="a very big cat"[: 4 + 3 * seed],
            negative_prompt="dogs"[seed:],
            true_cfg_scale=3.0,
        )
        for seed, mix in enumerate(world.mixes)
    ]
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        answers = await ask_together(engine, requests)

    for request, answer in zip(requests, answers, strict=True):
        assert_equal(answer.latents, stock(world, request).latents)
    assert value(metrics, "step_rows_count") < len(requests) * 2 * 3 / 2


async def test_equal_seeds_give_bit_equal_noise_whatever_the_batch(world: World) -> None:
    """The first step's latents are the noise; a neighbour must not draw from it."""
    requests = [generation(world, 7, mix, num_steps=1, num_images=2) for mix in world.mixes]
    seen: list[Tensor] = []
    async with running(world) as engine:
        with before_forward(world.denoiser, lambda kwargs: seen.append(kwargs["sample"])):
            await ask_together(engine, requests)
            shared = torch.cat([sample[: len(sample) // 2] for sample in seen])
            seen.clear()
            await ask(engine, generation(world, 8, num_steps=1))  # its seed is the second image's

    assert len(shared) == 8
    assert all(torch.equal(shared[i], shared[i % 2]) for i in range(8))
    assert torch.equal(seen[0][0], shared[1])


async def test_a_schedule_counts_scheduler_steps_of_the_denoiser_alone(world: World) -> None:
    """Heun calls twice a step, and the text encoders see the mix unscheduled."""
    _, first, _, both = world.mixes
    points = (ScheduledFactor(step=0, factor=0.0), ScheduledFactor(step=2, factor=0.5))
    schedules = [WeightSchedule(adapter_id="style-1", points=points)]
    scheduled = generation(
        world, 1, first, schedules=schedules, num_steps=4, scheduler="HeunDiscreteScheduler"
    )
    async with running(world) as engine:
        answer, _ = await ask_together(engine, [scheduled, generation(world, 2, both)])

    factors = [0, 0, 0, 0, 0.5, 0.5, 0.5]  # two calls a step, and one of the last
    wanted = stock_with(world, scheduled, [AdapterMix.of({first.parts[0].ref: f}) for f in factors])
    assert_equal(answer.latents, wanted)


def stock_with(world: World, request: ImageGeneration, mixes: list[AdapterMix]) -> Tensor:
    """Return the latents of the stock pipeline with a mix of its own for each denoiser call."""
    left = iter(mixes)

    def denoise(calls: Sequence[Call]) -> list[object]:
        with world.adapted.using(next(left)):
            return [call.function(**call.arguments) for call in calls]

    family = world.loaded.family
    denoiser = DenoiserStandIn("unet", world.denoiser, denoise, signature=family.signature)
    run = PipelineFactory(world.loaded, image_settings()).build(
        request.plan, {family.denoiser: denoiser}
    )
    with world.adapted.using(request.mix):
        latents = run(lambda _: None).latents
    assert next(left, None) is None
    return latents


async def test_a_merged_request_gets_what_an_unmerged_one_gets(world: World) -> None:
    """The two ways give the same image, in one batch with others."""
    mix = world.mixes[1]
    world.adapted.merges.put(mix, world.adapted.merge(mix))
    requests = [
        generation(world, 1, mix, Apply.MERGED),
        generation(world, 1, mix, Apply.UNMERGED),
        generation(world, 1, AdapterMix(), Apply.MERGED),
    ]
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        merged, unmerged, base = await ask_together(engine, requests)
    world.adapted.merges.release(mix)

    torch.testing.assert_close(merged.latents, unmerged.latents, rtol=0.0, atol=1e-6)
    assert (merged.latents - base.latents).norm() > 0.1 * base.latents.norm()
    assert value(metrics, "rows_total", apply="merged") == 8
    assert value(metrics, "rows_total", apply="unmerged") == 16
    finished: ImageFinished = merged.of(ImageFinished)[0]
    assert (finished.apply_mode, finished.mix_name) == (ApplyMode.MERGED, mix.name)


async def test_a_stream_tells_of_every_step_and_every_image(world: World) -> None:
    """Progress, a preview after each second step but not of the end, then images and their ends."""
    request = generation(
        world,
        2**64 - 1,
        num_images=2,
        num_steps=5,
        output={"preview_interval": 2, "metadata": True, "format": ImageFormat.WEBP},
    )
    metrics = Metrics(version="test")
    async with running(world, metrics) as engine:
        answer = await ask(engine, request)

    assert [event.step for event in answer.of(ImageProgress)] == [1, 2, 3, 4, 5]
    previews = [(event.step, event.index) for event in answer.of(ImagePreview)]
    assert previews == [(2, 0), (2, 1), (4, 0), (4, 1)]
    kinds = [type(event) for event in answer.events[-4:]]
    assert kinds == [GeneratedImage, ImageFinished, GeneratedImage, ImageFinished]
    for kind in (GeneratedImage, ImageFinished):
        assert [(e.index, e.seed) for e in answer.of(kind)] == [(0, 2**64 - 1), (1, 0)]
    assert answer.of(ImageFinished)[1].usage == ImageUsage(num_steps=5, num_denoiser_rows=12)
    assert [image.data[8:12] for image in answer.images] == [b"WEBP", b"WEBP"]
    assert value(metrics, "images_total") == 2
    assert value(metrics, "denoising_steps_total") == 10
    assert value(metrics, "image_request_seconds_count") == 1


async def test_a_step_has_no_more_rows_than_it_may(world: World) -> None:
    """Two requests of three fit at a time, and all three get their steps."""
    requests = [generation(world, seed, world.mixes[seed]) for seed in (1, 2, 3)]
    rows: list[int] = []
    async with running(world, max_rows=5) as engine:
        with before_forward(world.denoiser, lambda kwargs: rows.append(len(kwargs["sample"]))):
            answers = await ask_together(engine, requests)

    assert not any(answer.errors for answer in answers)
    assert max(rows) == 4
    assert sum(rows) == 3 * 8


async def test_a_safety_checker_sees_each_request_by_itself(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It looks at images, whose rows are not the engine's; what it flags is black."""
    world = build_world(tmp_path_factory.mktemp("checked"), "stable-diffusion-checked")
    async with running(world) as engine:
        answers = await ask_together(engine, [generation(world, seed) for seed in (1, 2)])

    flags = [[image.is_flagged for image in answer.images] for answer in answers]
    assert flags == [[True], [True]]


def test_what_can_never_run_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter whose head has another size, or metadata that its file has no room for."""
    engine = build(world)
    long = generation(
        world,
        prompt="cat" + " " * 65_500,
        output={"format": ImageFormat.JPEG, "metadata": True},
    )
    with pytest.raises(InvalidRequestError, match=r"^output\.metadata: "):
        engine.check(long)

    monkeypatch.setattr(world.adapted, "resized_module", lambda _: "unet.conv_out")
    with pytest.raises(InvalidRequestError, match=r"^adapters: .*replaces 'unet\.conv_out'"):
        engine.check(generation(world))

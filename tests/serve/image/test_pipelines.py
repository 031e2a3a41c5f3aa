"""Pipelines: what a request's own pipeline makes, and how its steps are counted."""

from dataclasses import asdict, dataclass, replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from PIL.Image import Image, fromarray
from torch import Tensor, nn

from lokr_serve.config import ImageSettings
from lokr_serve.image.families import family_of
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.pipelines import PipelineFactory, PipelineRun, StepDone
from lokr_serve.image.plan import ImagePlan, PipelineResult
from lokr_serve.types import ImageParams, ImageRequest
from tests.tiny.pipelines import PIPELINE_NAMES, make_pipeline

SEED = 2**64 - 2  # larger than what a signed number holds
PROMPT = "a cat on a mat"

SIDE = 32
NUM_STEPS = 4
STRENGTH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What a pipeline is called with besides; None for what it does not have."""

    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None


_GUIDED = Arguments(guidance_scale=4.0, negative_prompt="dull")
ARGUMENTS = {
    "stable-diffusion": _GUIDED,
    "stable-diffusion-checked": _GUIDED,
    "stable-diffusion-xl": _GUIDED,
    "stable-diffusion-3": _GUIDED,
    "flux": Arguments(guidance_scale=3.0, true_cfg_scale=2.0, negative_prompt="dull"),
    "flux-schnell": Arguments(),
    "flux2": Arguments(guidance_scale=3.0),
    "flux2-klein": Arguments(guidance_scale=3.0),
    "qwen-image": Arguments(true_cfg_scale=3.0, negative_prompt="dull"),
    "z-image": _GUIDED,
}


@cache
def loaded(name: str) -> LoadedPipeline:
    """Return a pipeline as if it had been loaded; its modules are never changed."""
    pipeline = make_pipeline(name)
    return LoadedPipeline(family=family_of(type(pipeline).__name__), pipeline=pipeline)


def init_image(name: str) -> Image:
    """Return an image to start from; FLUX.2 looks at none that is smaller."""
    side = 64 if name.startswith("flux2") else SIDE
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return fromarray(pixels)


def make_plan(
    name: str,
    image: Image | None = None,
    *,
    seeds: tuple[int, ...] = (SEED,),
    scheduler: str | None = None,
) -> ImagePlan:
    """Return a plan of four steps, of which an init image leaves half where there is a strength."""
    extra = ARGUMENTS[name]
    has_strength = image is not None and loaded(name).family.has_strength
    return ImagePlan(
        prompt=PROMPT,
        negative_prompt=extra.negative_prompt,
        width=SIDE,
        height=SIDE,
        num_steps=NUM_STEPS,
        num_run_steps=NUM_STEPS // 2 if has_strength else NUM_STEPS,
        guidance_scale=extra.guidance_scale,
        true_cfg_scale=extra.true_cfg_scale,
        seeds=seeds,
        scheduler=scheduler or type(loaded(name).pipeline.components["scheduler"]).__name__,
        init_image=image,
        init_digest=None,
        strength=STRENGTH if has_strength else None,
        max_rows=2 * len(seeds),
    )


def build(name: str, plan: ImagePlan) -> PipelineRun:
    """Return a run over the real components."""
    return PipelineFactory(loaded(name), ImageSettings()).build(plan, {})


def run(name: str, plan: ImagePlan) -> PipelineResult:
    """Return what a plan makes."""
    return build(name, plan)(lambda _: None)


def run_stock(name: str, image: Image | None) -> tuple[list[Image], Tensor]:
    """Return what the stock pipeline makes when it is called by hand, and its last latents."""
    family, pipeline = loaded(name).family, loaded(name).pipeline
    made = getattr(diffusers, family.text_to_image if image is None else family.image_to_image)
    scheduler = pipeline.components["scheduler"]
    components = {**pipeline.components, "scheduler": type(scheduler).from_config(scheduler.config)}
    if name == "stable-diffusion":
        components["requires_safety_checker"] = False
    stock = made(**components)
    stock.set_progress_bar_config(disable=True)
    arguments = {key: value for key, value in asdict(ARGUMENTS[name]).items() if value is not None}
    if image is None or family.denoiser == "transformer":
        arguments |= {"width": SIDE, "height": SIDE}
    if image is not None:
        arguments |= {"image": image}
        arguments |= {"strength": STRENGTH} if family.has_strength else {}
    kept: list[Tensor] = []

    def keep(_: object, iteration: int, timestep: object, given: dict[str, Tensor]) -> object:
        kept.append(given["latents"])
        return given

    output = stock(
        prompt=PROMPT,
        num_inference_steps=NUM_STEPS,
        generator=[torch.Generator().manual_seed(-2)],
        callback_on_step_end=keep,
        **arguments,
    )
    return output.images, kept[-1]


@pytest.mark.parametrize("has_image", [False, True])
@pytest.mark.parametrize("name", PIPELINE_NAMES)
def test_a_run_is_the_stock_pipeline_bit_for_bit(name: str, has_image: bool) -> None:
    """A request gets what its user would get from diffusers.

    And it draws nothing from the process's random numbers, which others draw from.
    """
    image = init_image(name) if has_image else None
    expected, latents = run_stock(name, image)
    random_state = torch.random.get_rng_state()

    made = run(name, make_plan(name, image))

    assert torch.equal(made.latents, latents)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [i.tobytes() for i in made.images] == [i.tobytes() for i in expected]


TOGETHER = [(name, False) for name in PIPELINE_NAMES if name != "stable-diffusion-checked"]
TOGETHER += [(name, True) for name, _ in TOGETHER if not name.startswith("flux2")]


@pytest.mark.parametrize(("name", "has_image"), TOGETHER)
def test_each_of_two_images_is_what_its_seed_makes_alone(name: str, has_image: bool) -> None:
    """So that an image can be made again by its own seed, whatever it was asked for with."""
    image = init_image(name) if has_image else None
    seeds = (SEED, SEED + 1)
    alone = [run(name, make_plan(name, image, seeds=(seed,))).latents for seed in seeds]

    together = run(name, make_plan(name, image, seeds=seeds))

    assert len(together.images) == 2
    error = torch.linalg.vector_norm(together.latents - torch.cat(alone))
    assert error <= 1e-5 * torch.linalg.vector_norm(together.latents)


STEP_CASES = {
    # The step that each call of the denoiser belongs to; with an init image half are run.
    ("EulerDiscreteScheduler", False): [0, 1, 2, 3],
    ("EulerDiscreteScheduler", True): [0, 1],
    ("EulerAncestralDiscreteScheduler", False): [0, 1, 2, 3],
    ("HeunDiscreteScheduler", False): [0, 0, 1, 1, 2, 2, 3],
    ("HeunDiscreteScheduler", True): [0, 0, 1],
    ("KDPM2DiscreteScheduler", False): [0, 0, 1, 1, 2, 2, 3],
    ("PNDMScheduler", False): [0, 0, 1, 2, 3],
    ("PNDMScheduler", True): [0, 0, 1],
    ("DPMSolverMultistepScheduler", False): [0, 1, 2, 3],
}


@pytest.mark.parametrize(("scheduler", "has_image"), STEP_CASES)
def test_steps_are_those_of_the_scheduler(scheduler: str, has_image: bool) -> None:
    """A schedule of weights means steps, and some schedulers call the denoiser more often."""
    name = "stable-diffusion"
    image = init_image(name) if has_image else None
    request = build(name, make_plan(name, image, scheduler=scheduler))
    called: list[int] = []
    done: list[StepDone] = []
    unet: nn.Module = loaded(name).pipeline.components["unet"]
    hook = unet.register_forward_pre_hook(lambda *_: called.append(request.step))

    with hook:
        request(done.append)

    expected = STEP_CASES[scheduler, has_image]
    num_steps = max(expected) + 1
    assert called == expected
    assert [step.step for step in done] == list(range(1, num_steps + 1))
    assert {step.num_steps for step in done} == {num_steps}
    assert {step.latents.shape for step in done} == {(1, 4, SIDE // 2, SIDE // 2)}


def test_steps_of_a_flow_are_counted() -> None:
    """Transformers call their schedulers by another loop."""
    name = "stable-diffusion-3"
    request = build(name, make_plan(name, scheduler="FlowMatchHeunDiscreteScheduler"))
    called: list[int] = []
    transformer: nn.Module = loaded(name).pipeline.components["transformer"]

    with transformer.register_forward_pre_hook(lambda *_: called.append(request.step)):
        request(lambda _: None)

    assert called == [0, 0, 1, 1, 2, 2, 3]


def test_what_a_step_raises_ends_the_run() -> None:
    """A request that is cancelled stops at its next step."""
    name = "stable-diffusion"
    done: list[int] = []

    def stop(step: StepDone) -> None:
        done.append(step.step)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build(name, make_plan(name))(stop)

    assert done == [1]


def test_components_are_replaced_and_shared() -> None:
    """The engine's stand-ins are what a pipeline sees; the model's own scheduler is not."""
    name = "stable-diffusion"
    stand_in = make_pipeline(name).components["unet"]
    factory = PipelineFactory(loaded(name), ImageSettings())

    request = factory.build(make_plan(name), {"unet": stand_in})

    components = request.pipeline.components
    own = loaded(name).pipeline.components
    assert components["unet"] is stand_in
    assert components["vae"] is own["vae"]
    assert components["scheduler"] is not own["scheduler"]


def test_the_safety_checker_flags_images() -> None:
    """An operator who keeps the model's checker gets what it says."""
    made = run("stable-diffusion-checked", make_plan("stable-diffusion-checked", seeds=(1, 2)))

    assert made.are_flagged == (True, True)
    assert made.images[0].getextrema() == ((0, 0), (0, 0), (0, 0))
    assert run("stable-diffusion", make_plan("stable-diffusion")).are_flagged == (False,)


def test_a_distilled_model_runs_without_guidance(caplog: pytest.LogCaptureFixture) -> None:
    """FLUX.2 klein is mostly used so; a warning for each request would hide others."""
    pipeline = make_pipeline("flux2-klein")
    pipeline.register_to_config(is_distilled=True)
    distilled = LoadedPipeline(family=family_of("Flux2KleinPipeline"), pipeline=pipeline)
    plan = replace(make_plan("flux2-klein"), guidance_scale=None)
    called: list[object] = []
    transformer: nn.Module = pipeline.components["transformer"]
    transformer.register_forward_pre_hook(lambda *_: called.append(None))

    PipelineFactory(distilled, ImageSettings()).build(plan, {})(lambda _: None)

    assert len(called) == NUM_STEPS
    assert caplog.messages == []


def test_the_factory_plans() -> None:
    """Who has the factory can make plans that it builds."""
    factory = PipelineFactory(loaded("stable-diffusion"), ImageSettings())
    params = ImageParams(width=SIDE, height=SIDE, num_steps=1)

    plan = factory.plan(ImageRequest(prompt=PROMPT, params=params), SEED)

    assert plan.seeds == (SEED,)
    assert len(factory.build(plan, {})(lambda _: None).images) == 1

"""Schedulers: each that is offered runs, and repeats itself whatever the batch."""

from collections.abc import Callable
from functools import cache
from typing import cast

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    IPNDMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image

from lokr_serve.errors import InvalidRequestError, ModelError
from lokr_serve.image.families import FAMILIES, pipeline_class
from lokr_serve.image.schedulers import (
    SCHEDULERS,
    choose_scheduler,
    make_scheduler,
    require_scheduler,
    scheduler_config,
)
from tests.tiny.pipelines import make_pipeline

# A family that has the same ones as another is run with a few of them.
SOME = {
    "stable-diffusion-xl": {"EulerDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"},
    "flux2-klein": {"UniPCMultistepScheduler"},
}
TEXT = [
    (family, name)
    for family, known in SCHEDULERS.items()
    for name in known.text_to_image & SOME.get(family, known.text_to_image)
]
IMAGE = [
    (family, name)
    for family, known in SCHEDULERS.items()
    for name in known.image_to_image & SOME.get(family, known.image_to_image)
]


@cache
def tiny(family: str) -> DiffusionPipeline:
    """Return a family's pipeline, made once; its scheduler is never used."""
    return make_pipeline(family)


def from_image(family: str) -> DiffusionPipeline:
    """Return the family's image-to-image pipeline over the same components."""
    made_by = next(known.image_to_image for known in FAMILIES if known.name == family)
    pipeline = pipeline_class(made_by)(**tiny(family).components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def made(
    pipeline: DiffusionPipeline, scheduler: SchedulerMixin, seeds: list[int], **options: object
) -> torch.Tensor:
    """Return the latents of images with these seeds, after two steps."""
    pipeline.register_modules(scheduler=scheduler)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    output = cast(Callable[..., tuple[torch.Tensor]], pipeline)(
        prompt="a fox",
        num_inference_steps=2,
        num_images_per_prompt=len(seeds),
        generator=generators,
        output_type="latent",
        **options,
    )
    return output[0]


def check_repeats(
    pipeline: DiffusionPipeline,
    own: SchedulerMixin,
    name: str,
    options: Callable[[int], dict[str, object]],
) -> None:
    """Check that an image does not depend on its batch, nor on process-wide random numbers."""
    before = torch.get_rng_state()

    both = made(pipeline, make_scheduler(own, name), [5, 6], **options(2))
    alone = made(pipeline, make_scheduler(own, name), [6], **options(1))

    assert torch.equal(torch.get_rng_state(), before)
    assert both.isfinite().all()
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


def test_every_family_has_its_schedulers() -> None:
    """A family without a row would fail at its first request."""
    assert set(SCHEDULERS) == {family.name for family in FAMILIES}


@pytest.mark.parametrize(("family", "name"), sorted(TEXT))
def test_images_from_text_repeat_with_every_scheduler(family: str, name: str) -> None:
    """What is offered runs on the family's real pipeline and draws from the request's seeds."""
    pipeline = tiny(family)
    own = make_pipeline(family).components["scheduler"]

    check_repeats(pipeline, own, name, lambda _: {"height": 32, "width": 32})


@pytest.mark.parametrize(("family", "name"), sorted(IMAGE))
def test_images_from_an_image_repeat_with_every_scheduler(family: str, name: str) -> None:
    """The same for pipelines that start from an image, of which some schedulers cannot."""
    pipeline = from_image(family)
    own = make_pipeline(family).components["scheduler"]
    is_reference = family.startswith("flux2")
    side = 64 if is_reference else 32
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")

    def options(num_images: int) -> dict[str, object]:
        if is_reference:
            return {"image": image}
        has_size = family in ("flux", "qwen-image", "z-image")
        size = {"height": side, "width": side} if has_size else {}
        return {"image": [image] * num_images, "strength": 1.0, **size}

    check_repeats(pipeline, own, name, options)


def test_the_models_own_scheduler_is_the_one_unasked() -> None:
    """A model is made for its own; a fresh one is made of it, as requests run beside each other."""
    own = PNDMScheduler(skip_prk_steps=True, steps_offset=1)

    name = choose_scheduler("", own, "stable-diffusion", has_init_image=False)
    fresh = make_scheduler(own, name)

    assert type(fresh) is type(own)
    assert fresh is not own
    assert scheduler_config(fresh) == scheduler_config(own)


@pytest.mark.parametrize(
    ("own", "family", "problem"),
    [
        (IPNDMScheduler(), "stable-diffusion", "IPNDMScheduler, which is not served"),
        (FlowMatchLCMScheduler(), "flux", "FlowMatchLCMScheduler, which is not served"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "flux", "stochastic_sampling"),
    ],
)
def test_a_model_whose_scheduler_draws_from_shared_numbers_is_refused(
    own: SchedulerMixin, family: str, problem: str
) -> None:
    """The server says so at start, rather than serving images that nobody can repeat."""
    with pytest.raises(ModelError, match=problem):
        require_scheduler(own, family)


@pytest.mark.parametrize(
    ("name", "has_init_image", "problem"),
    [
        ("NoSuchScheduler", False, "starts from text with"),
        ("LMSDiscreteScheduler", False, "starts from text with"),  # needs scipy
        ("FlowMatchLCMScheduler", False, "starts from text with"),  # draws from all's numbers
        ("UniPCMultistepScheduler", True, "starts from an image with"),
        ("__doc__", False, "starts from text with"),
    ],
)
def test_an_unknown_scheduler_is_refused_with_those_that_are_usable(
    name: str, has_init_image: bool, problem: str
) -> None:
    """The error is the list that a caller chooses from."""
    own = FlowMatchEulerDiscreteScheduler()

    with pytest.raises(InvalidRequestError) as caught:
        choose_scheduler(name, own, "flux", has_init_image=has_init_image)

    assert caught.value.field == "params.scheduler"
    assert repr(name) in caught.value.problem
    assert problem in caught.value.problem
    assert "FlowMatchEulerDiscreteScheduler" in caught.value.problem


def test_a_flow_keeps_its_shift_in_every_scheduler() -> None:
    """Classes call it differently, and an image comes out wrong without it."""
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)

    other = make_scheduler(own, "UniPCMultistepScheduler")
    back = make_scheduler(other, "FlowMatchEulerDiscreteScheduler")

    assert scheduler_config(other)["flow_shift"] == 3.0
    assert scheduler_config(other)["prediction_type"] == "flow_prediction"
    assert scheduler_config(back)["shift"] == 3.0


def test_a_model_of_noise_stays_one_after_unipc() -> None:
    """UniPC has the settings of flows too, unused."""
    own = UniPCMultistepScheduler(prediction_type="v_prediction")

    other = make_scheduler(own, "DPMSolverMultistepScheduler")

    assert scheduler_config(other)["use_flow_sigmas"] is False
    assert scheduler_config(other)["prediction_type"] == "v_prediction"

"""What a model would refuse, cut off or ignore is refused before any work."""

from typing import Any

import pytest

from lokr_serve.config import ImageSettings
from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.families import family_of
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.planner import Planner
from lokr_serve.types import (
    AdapterWeight,
    ImageParams,
    ImageRequest,
    InitImage,
    ScheduledFactor,
    WeightSchedule,
)
from tests.serve.image.planning import SD3, SETTINGS, SIZE, XL, plan, planner, request, tiny
from tests.tiny.pipelines import make_pipeline

REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "width-between-multiples": (
        "stable-diffusion",
        {"width": 36},
        "params.width",
        "36 is not a multiple of 8, as this model needs; use 32 or 40",
    ),
    "height-below-the-multiple": ("stable-diffusion", {"height": 4}, "params.height", "use 8"),
    "width-of-patches": ("flux", {"width": 30}, "params.width", "use 28 or 32"),
    "too-many-pixels": (XL, {"width": 1024, "height": 1024}, "params.width", "more than the 26214"),
    "beyond-the-places-of-sd3": (SD3, {"width": 160}, "params.width", "more than the 128"),
    "beyond-the-places-of-z-image": (
        "z-image",
        {"width": 512, "height": 32},
        "params.width",
        "more than the 256",
    ),
    "beyond-the-places-of-qwen": (
        "qwen-image",
        {"width": 8196, "height": 4},
        "params.width",
        "more than the 8192",
    ),
    "init-image-of-another-width": (
        XL,
        {"image": (32, 48), "width": 48},
        "params.width",
        "48 x 48 is not the size of the init image, 32 x 48",
    ),
    "init-image-of-another-height": (
        XL,
        {"image": (32, 48), "height": 32},
        "params.height",
        "32 x 32 is not the size of the init image, 32 x 48",
    ),
    "init-image-between-multiples": (
        XL,
        {"image": (33, 32)},
        "params.init_image.data",
        "needs multiples of 8",
    ),
    "init-image-broken": (
        XL,
        {"init_image": InitImage(data=b"hello")},
        "params.init_image.data",
        "is not a PNG",
    ),
    "init-image-too-large": (
        XL,
        {"image": (520, 512)},
        "params.init_image.data",
        "more than 262144 in all",
    ),
    "reference-too-narrow": ("flux2", {"image": (32, 64)}, "params.init_image.data", "at least 64"),
    "reference-too-long": ("flux2", {"image": (640, 64)}, "params.init_image.data", "over 8 times"),
    "strength-of-a-reference": (
        "flux2",
        {"image": (64, 64), "strength": 0.5},
        "params.init_image.strength",
        "leave it out",
    ),
    "strength-that-leaves-no-step": (
        "stable-diffusion",
        {"image": (32, 32), "strength": 0.2, "num_steps": 4},
        "params.init_image.strength",
        "0.2 of 4 steps leaves none to run",
    ),
    "too-many-steps": ("flux", {"num_steps": 101}, "params.num_steps", "101 is more than 100"),
    "steps-that-a-scheduler-refuses": (
        XL,
        {"num_steps": 60, "scheduler": "LCMScheduler"},
        "params.num_steps",
        "LCMScheduler refuses 60",
    ),
    "unknown-scheduler": (XL, {"scheduler": "Foo"}, "params.scheduler", "DDIMScheduler, DDPM"),
    "guidance-of-schnell": (
        "flux-schnell",
        {"guidance_scale": 3.5},
        "params.guidance_scale",
        "would ignore it",
    ),
    "guidance-of-qwen": (
        "qwen-image",
        {"guidance_scale": 3.5},
        "params.guidance_scale",
        "would ignore it",
    ),
    "true-guidance-of-sdxl": (XL, {"true_cfg_scale": 2.0}, "params.true_cfg_scale", "has none"),
    "true-guidance-without-a-negative-prompt": (
        "flux",
        {"true_cfg_scale": 2.0},
        "params.true_cfg_scale",
        "give one",
    ),
    "negative-prompt-without-guidance": (
        XL,
        {"negative": "a dog", "guidance_scale": 1.0},
        "negative_prompt",
        "set params.guidance_scale above 1",
    ),
    "negative-prompt-without-guidance-of-z-image": (
        "z-image",
        {"negative": "a dog", "guidance_scale": 0.0},
        "negative_prompt",
        "set params.guidance_scale above 0",
    ),
    "negative-prompt-without-true-guidance": (
        "flux",
        {"negative": "a dog"},
        "negative_prompt",
        "set params.true_cfg_scale above 1",
    ),
    "negative-prompt-of-flux2": ("flux2", {"negative": ""}, "negative_prompt", "takes none"),
    "negative-prompt-of-klein": ("flux2-klein", {"negative": ""}, "negative_prompt", "takes none"),
    "too-many-rows": (XL, {"num_images": 5}, "params.num_images", "ask for at most 4 at a time"),
    "prompt-of-clip": (
        XL,
        {"prompt": "a" * 76},
        "prompt",
        "has 78 tokens of text_encoder, which would be cut off after 77",
    ),
    "negative-prompt-of-clip": (XL, {"negative": "a" * 76}, "negative_prompt", "has 78 tokens"),
    "prompt-of-t5": ("flux", {"prompt": "a" * 600}, "prompt", "cut off after 512"),
    "prompt-of-sd3": (SD3, {"prompt": "a" * 300}, "prompt", "cut off after 256"),
    "prompt-of-qwen": ("qwen-image", {"prompt": "a" * 600}, "prompt", "cut off after 512"),
    "prompt-of-flux2": ("flux2", {"prompt": "a" * 600}, "prompt", "cut off after 512"),
    "prompt-of-klein": ("flux2-klein", {"prompt": "a" * 600}, "prompt", "cut off after 512"),
    "prompt-of-z-image": ("z-image", {"prompt": "a" * 600}, "prompt", "cut off after 512"),
    "prompt-with-a-place-for-an-image": ("flux2", {"prompt": "a [IMG]"}, "prompt", "[IMG]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_cannot_do_is_refused_by_name(name: str) -> None:
    """Before any work, and with a way out; nothing is cut, resized or ignored unsaid."""
    pipeline, asked, field, problem = REFUSED[name]
    sizes = {} if {"width", "height", "image"} & set(asked) else SIZE

    with pytest.raises(InvalidRequestError) as caught:
        plan(pipeline, **sizes, **asked)

    assert caught.value.field == field
    assert problem in caught.value.problem


def test_the_guidance_of_a_distilled_klein_is_refused() -> None:
    """It takes its steps without it, and its pipeline only logs that."""
    distilled = planner("flux2-klein", is_distilled=True)

    assert distilled.plan(request(**SIZE), seed=0).guidance_scale is None
    with pytest.raises(InvalidRequestError, match="would ignore it"):
        distilled.plan(request(guidance_scale=2.0, **SIZE), seed=0)


def test_a_model_that_must_be_told_its_guidance_has_no_default() -> None:
    """A distilled Qwen-Image raises in the middle of its work without."""
    pipeline = make_pipeline("qwen-image")
    pipeline.components["transformer"].register_to_config(guidance_embeds=True)
    loaded = LoadedPipeline(family=family_of("QwenImagePipeline"), pipeline=pipeline)

    with pytest.raises(InvalidRequestError, match="has no default for it; set it"):
        Planner(loaded, SETTINGS).plan(request(**SIZE), seed=0)


def test_a_unet_that_is_told_its_guidance_has_no_negative_prompt() -> None:
    """A latent consistency model's UNet knows the scale and runs once."""
    pipeline = make_pipeline("stable-diffusion")
    pipeline.components["unet"].register_to_config(time_cond_proj_dim=8)
    loaded = LoadedPipeline(family=family_of("StableDiffusionPipeline"), pipeline=pipeline)

    assert Planner(loaded, SETTINGS).plan(request(**SIZE), seed=0).max_rows == 1
    with pytest.raises(InvalidRequestError, match="is ignored without"):
        Planner(loaded, SETTINGS).plan(request(negative="a dog", **SIZE), seed=0)


def test_steps_beyond_the_models_training_are_refused() -> None:
    """DDIM would start at step 1000 of a table of 1000, and fail there."""
    loaded = LoadedPipeline(
        family=family_of("StableDiffusionPipeline"), pipeline=tiny("stable-diffusion")
    )
    asked = request(num_steps=1000, scheduler="DDIMScheduler", **SIZE)

    with pytest.raises(InvalidRequestError, match="start at 1000"):
        Planner(loaded, ImageSettings()).plan(asked, seed=0)


def test_a_schedule_beyond_the_last_step_is_refused() -> None:
    """A weight that never comes is a mistake in counting."""
    asked = ImageRequest(
        prompt="a fox",
        adapters=(AdapterWeight(adapter_id="red"),),
        schedules=(
            WeightSchedule(adapter_id="red", points=(ScheduledFactor(step=4, factor=0.0),)),
        ),
        params=ImageParams(num_steps=4, **SIZE),
    )

    with pytest.raises(InvalidRequestError, match="step 4 is never run: there are 4") as caught:
        planner("flux").plan(asked, seed=0)

    assert caught.value.field == "schedules[0].points"

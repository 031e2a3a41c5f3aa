"""Plans: every default filled in, and steps, seeds and rows counted."""

import hashlib
from typing import Any

import pytest

from lokr_serve.image.families import FAMILIES, family_of, pipeline_class
from lokr_serve.image.sizes import image_sizes
from tests.serve.image.image_files import encoded, picture
from tests.serve.image.planning import SD3, SIZE, XL, plan, planner, request, tiny
from tests.tiny.pipelines import PIPELINE_NAMES, make_pipeline


@pytest.mark.parametrize(
    ("name", "side", "num_steps", "guidance"),
    [
        ("stable-diffusion", 32, 50, 7.5),
        (XL, 32, 50, 5.0),
        (SD3, 32, 28, 7.0),
        ("flux", 256, 28, 3.5),
        ("flux-schnell", 256, 28, None),
        ("flux2", 256, 50, 4.0),
        ("flux2-klein", 256, 50, 4.0),
        ("qwen-image", 256, 50, None),
    ],
)
def test_what_is_unset_is_the_stock_pipelines_own(
    name: str, side: int, num_steps: int, guidance: float | None
) -> None:
    """The same request to diffusers makes the same image."""
    made = plan(name)

    assert (made.width, made.height) == (side, side)
    assert (made.num_steps, made.num_run_steps) == (num_steps, num_steps)
    assert made.guidance_scale == guidance
    assert made.scheduler == type(tiny(name).components["scheduler"]).__name__
    assert (made.seeds, made.init_image, made.strength) == ((7,), None, None)


def test_a_pipeline_without_a_size_of_its_own_makes_its_default_one() -> None:
    """Z-Image's default of 1,024 pixels is in its call alone."""
    sizes = image_sizes(family_of("ZImagePipeline"), tiny("z-image"), 2**20)

    assert (sizes.default_width, sizes.default_height) == (1024, 1024)


@pytest.mark.parametrize("name", PIPELINE_NAMES)
def test_an_empty_prompt_is_a_prompt(name: str) -> None:
    """An image of nothing in particular may be asked of every family."""
    assert plan(name, prompt="", **SIZE).prompt == ""


def test_each_image_has_the_next_seed() -> None:
    """Seeds are unsigned and 64 bits wide, so they begin again after the last one."""
    made = planner("flux").plan(request(num_images=3, **SIZE), seed=2**64 - 2)

    assert made.seeds == (2**64 - 2, 2**64 - 1, 0)


@pytest.mark.parametrize(
    ("name", "asked", "max_rows"),
    [
        ("stable-diffusion", {"num_images": 4}, 8),
        ("stable-diffusion", {"num_images": 8, "guidance_scale": 1.0}, 8),
        ("flux", {"num_images": 8, "negative": "", "true_cfg_scale": 2.0}, 8),
        ("flux2-klein", {"num_images": 8}, 8),
        ("z-image", {"num_images": 4}, 8),
        ("z-image", {"num_images": 4, "guidance_scale": 0.5}, 8),
        ("z-image", {"num_images": 8, "guidance_scale": 0.0}, 8),
    ],
)
def test_the_rows_of_a_call_count_its_guidance(
    name: str, asked: dict[str, Any], max_rows: int
) -> None:
    """Some families guide in one call of twice the rows, others in two calls."""
    assert plan(name, **asked, **SIZE).max_rows == max_rows


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.has_strength])
@pytest.mark.parametrize(("num_steps", "strength"), [(4, 1.0), (6, 0.6), (7, 0.3)])
def test_the_steps_left_are_those_that_the_stock_pipeline_runs(
    family: Any, num_steps: int, strength: float
) -> None:
    """Progress, schedules and usage count what is really run."""
    components = make_pipeline(family.name).components
    stock = pipeline_class(family.image_to_image)(**components)
    stock.set_progress_bar_config(disable=True)
    iterations: list[int] = []

    def count(_: object, iteration: int, *__: object) -> dict[str, object]:
        iterations.append(iteration)
        return {}

    made = plan(family.name, image=(32, 32), num_steps=num_steps, strength=strength)
    run: Any = stock
    sizes = SIZE if family.name in ("flux", "qwen-image", "z-image") else {}
    run(
        prompt="a fox",
        image=picture(size=(32, 32)),
        num_inference_steps=num_steps,
        strength=strength,
        output_type="latent",
        callback_on_step_end=count,
        **sizes,
    )

    num_before = 1 if made.scheduler == "PNDMScheduler" else 0
    assert made.num_run_steps == len(iterations) - num_before


def test_an_init_image_gives_the_size() -> None:
    """Nobody has to say twice how large an image is."""
    made = plan(XL, image=(48, 32))

    assert (made.width, made.height) == (48, 32)
    assert made.init_image is not None
    assert made.init_digest == hashlib.sha256(encoded(picture(size=(48, 32)))).hexdigest()
    assert made.strength == 0.3  # the stock pipeline's


def test_a_reference_may_have_another_size_than_the_image() -> None:
    """FLUX.2 looks at the image; it does not start from it."""
    alone, sized = plan("flux2", image=(64, 128)), plan("flux2", image=(64, 128), width=32)

    assert (alone.width, alone.height, alone.strength) == (64, 128, None)
    assert (sized.width, sized.height) == (32, 128)
    assert alone.num_run_steps == alone.num_steps


@pytest.mark.parametrize(
    ("name", "asked", "true_cfg"),
    [
        ("flux", {}, 1.0),
        ("flux", {"negative": "a dog", "true_cfg_scale": 3.0}, 3.0),
        ("qwen-image", {}, 1.0),
        ("qwen-image", {"negative": ""}, 4.0),
        ("stable-diffusion", {}, None),
    ],
)
def test_true_guidance_is_on_with_a_negative_prompt_alone(
    name: str, asked: dict[str, Any], true_cfg: float | None
) -> None:
    """Without one the stock pipelines do without it too."""
    assert plan(name, **asked, **SIZE).true_cfg_scale == true_cfg


def test_a_long_prompt_that_one_encoder_sees_whole_is_fine() -> None:
    """CLIP cuts off what T5 reads to its end."""
    assert plan("flux", prompt="a" * 200, **SIZE).prompt == "a" * 200

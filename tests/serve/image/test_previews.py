"""Previews: what the latents of a step would be as an image, made small and cheap."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn

from lokr_serve.image.families import FAMILIES, pipeline_class
from lokr_serve.image.plan import ImagePlan
from lokr_serve.image.previews import MAX_SIDE, preview_images
from tests.serve.image.image_files import picture
from tests.serve.image.planning import plan
from tests.tiny.pipelines import PIPELINE_NAMES, make_pipeline

GUIDANCE = {"stable-diffusion": 1.0}
SHAPES = {  # of the latents of 128 x 640 pixels
    "stable-diffusion": (1, 4, 320, 64),
    "flux": (1, 160 * 32, 16),
    "flux2": (1, 160 * 32, 16),
    "qwen-image": (1, 160 * 32, 16),
}
FROM_IMAGE = {family.name: family.image_to_image for family in FAMILIES if family.has_strength}


@cache
def tiny(name: str) -> DiffusionPipeline:
    """Return a tiny pipeline; its latents have a mean wherever a model of the family may say so."""
    pipeline = make_pipeline(name)
    vae = pipeline.components["vae"]
    if name == "stable-diffusion-xl":
        means, stds = [0.1, -0.2, 0.0, 0.3], [1.1, 0.9, 1.0, 1.2]
        vae.register_to_config(latents_mean=means, latents_std=stds)
    if name.startswith("flux2"):
        vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, len(vae.bn.running_mean)))
        vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, len(vae.bn.running_var)))
    return pipeline


class Decoder(nn.Module):
    """Decodes as an autoencoder does, and keeps what it is given."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self._decode = cast(Callable[..., tuple[Tensor]], vae.decode)
        self.latents: Tensor | None = None

    @property
    def num_latents(self) -> int:
        """How many places it has decoded."""
        assert self.latents is not None
        return self.latents[0, 0].numel()

    def decode(self, latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """Decode latents."""
        self.latents = latents
        return self._decode(latents, return_dict=return_dict)


def check_same(previews: list[Image], images: list[Image]) -> None:
    """Check that pixels agree, up to the rounding of one level."""
    assert len(previews) == len(images) == 2
    for preview, image in zip(previews, images, strict=True):
        difference = np.asarray(preview).astype(int) - np.asarray(image).astype(int)
        assert preview.size == image.size
        assert np.asarray(image).std() > 5
        assert abs(difference).max() <= 1


def run(
    pipeline: DiffusionPipeline, made: ImagePlan, **options: object
) -> tuple[list[Image], Tensor]:
    """Return the images of a stock pipeline, and its latents after the last step."""
    kept: list[Tensor] = []

    def keep(_: object, __: int, ___: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept.append(tensors["latents"])
        return tensors

    call = cast(Callable[..., Any], pipeline)
    output = call(
        prompt="a fox",
        num_inference_steps=made.num_steps,
        num_images_per_prompt=len(made.seeds),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in made.seeds],
        callback_on_step_end=keep,
        **options,
    )
    return output.images, kept[-1]


@pytest.mark.parametrize("name", sorted({*PIPELINE_NAMES} - {"stable-diffusion-checked"}))
def test_a_preview_of_the_last_step_is_the_image(name: str) -> None:
    """What is not shrunk is decoded as the stock pipeline decodes it, whatever the family."""
    pipeline = tiny(name)
    made = plan(name, width=48, height=32, num_steps=2, num_images=2)
    images, latents = run(pipeline, made, width=48, height=32)

    check_same(preview_images(pipeline, made, latents, pipeline.components["vae"]), images)


@pytest.mark.parametrize("name", FROM_IMAGE)
def test_a_preview_of_an_image_made_from_another_is_right(name: str) -> None:
    """Image-to-image pipelines are other classes over the same components."""
    pipeline = pipeline_class(FROM_IMAGE[name])(**tiny(name).components)
    pipeline.set_progress_bar_config(disable=True)
    made = plan(name, image=(48, 32), num_steps=2, num_images=2, strength=1.0)
    size = {"width": 48, "height": 32} if name in ("flux", "qwen-image", "z-image") else {}

    images, latents = run(pipeline, made, image=[picture(size=(48, 32))] * 2, strength=1.0, **size)

    check_same(preview_images(pipeline, made, latents, pipeline.components["vae"]), images)


@pytest.mark.parametrize("name", ["stable-diffusion", "flux", "flux2", "qwen-image"])
def test_a_large_image_has_a_small_preview(name: str) -> None:
    """A preview costs what its own pixels cost, whatever the image's."""
    pipeline = tiny(name)
    made = plan(name, width=128, height=640, num_steps=1, guidance_scale=GUIDANCE.get(name))
    latents = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(0))
    decoder = Decoder(pipeline.components["vae"])

    (preview,) = preview_images(pipeline, made, latents, decoder)

    assert preview.size == (50, MAX_SIDE)
    assert decoder.num_latents == 25 * 128


def test_shrinking_keeps_what_is_even() -> None:
    """An even area stays as it is: its latents are averaged, not picked."""
    pipeline = tiny("stable-diffusion")
    made = plan("stable-diffusion", width=512, height=512, num_steps=1)
    latents = torch.tensor([0.5, -0.5]).repeat_interleave(128).expand(1, 4, 256, 256)
    decoder = Decoder(pipeline.components["vae"])

    preview_images(pipeline, made, latents, decoder)

    assert decoder.latents is not None
    half = decoder.latents * pipeline.components["vae"].config.scaling_factor
    torch.testing.assert_close(half[..., :64], torch.full((1, 4, 128, 64), 0.5))
    torch.testing.assert_close(half[..., 64:], torch.full((1, 4, 128, 64), -0.5))

"""Trained: which modules of a family's pipeline adapters train, and how their factors are drawn."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxImg2ImgPipeline,
    QwenImageImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
    ZImageImg2ImgPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from tests.tiny.pipelines import make_pipeline

# Heads that nobody reads, and what sees pictures, which no request gives a text encoder; of deep
# encoders the first layers are enough.
_UNTRAINED = re.compile(
    r"lm_head|\.visual\.|\.vision_tower\.|\.multi_modal_projector\.|\.layers\.([4-9]|\d\d)\."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFamily:
    """A family of pipelines, and the components that adapters train."""

    name: str  # of the tiny pipeline
    image_to_image: type[DiffusionPipeline]
    denoiser: str
    encoders: tuple[str, ...]
    # Those whose LoRA the family's own loader in diffusers takes.
    diffusers_encoders: tuple[str, ...] = ()
    has_diffusers_lokr: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        """All components that adapters train."""
        return (self.denoiser, *self.encoders)


FAMILIES = {
    family.name: family
    for family in (
        ImageFamily(
            name="stable-diffusion",
            image_to_image=StableDiffusionImg2ImgPipeline,
            denoiser="unet",
            encoders=("text_encoder",),
            diffusers_encoders=("text_encoder",),
        ),
        ImageFamily(
            name="stable-diffusion-xl",
            image_to_image=StableDiffusionXLImg2ImgPipeline,
            denoiser="unet",
            encoders=("text_encoder", "text_encoder_2"),
            diffusers_encoders=("text_encoder", "text_encoder_2"),
        ),
        ImageFamily(
            name="stable-diffusion-3",
            image_to_image=StableDiffusion3Img2ImgPipeline,
            denoiser="transformer",
            encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
            diffusers_encoders=("text_encoder", "text_encoder_2"),
        ),
        ImageFamily(
            name="flux",
            image_to_image=FluxImg2ImgPipeline,
            denoiser="transformer",
            encoders=("text_encoder", "text_encoder_2"),
            diffusers_encoders=("text_encoder",),
        ),
        ImageFamily(
            name="flux2",
            image_to_image=Flux2Pipeline,
            denoiser="transformer",
            encoders=("text_encoder",),
            has_diffusers_lokr=True,
        ),
        ImageFamily(
            name="flux2-klein",
            image_to_image=Flux2KleinPipeline,
            denoiser="transformer",
            encoders=("text_encoder",),
            has_diffusers_lokr=True,
        ),
        ImageFamily(
            name="qwen-image",
            image_to_image=QwenImageImg2ImgPipeline,
            denoiser="transformer",
            encoders=("text_encoder",),
        ),
        ImageFamily(
            name="z-image",
            image_to_image=ZImageImg2ImgPipeline,
            denoiser="transformer",
            encoders=("text_encoder",),
            has_diffusers_lokr=True,
        ),
    )
}


class Holder(nn.Module):
    """The trained components of a new tiny pipeline as one module, as a trainer may hold them."""

    def __init__(self, family: ImageFamily, dtype: torch.dtype) -> None:
        super().__init__()
        self.pipeline: DiffusionPipeline = make_pipeline(family.name, dtype)
        for name in family.components:
            self.add_module(name, component(self.pipeline, name))

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of every weight, by the component's name and the path in it."""
        return {name: p.detach().clone() for name, p in self.named_parameters()}


def component(pipeline: DiffusionPipeline, name: str) -> nn.Module:
    """Return a component of a pipeline that is a module."""
    module = pipeline.components[name]
    assert isinstance(module, nn.Module)
    return module


def trained_paths(root: nn.Module) -> list[str]:
    """Return the paths of the linear modules and convolutions that adapters train."""
    return [
        path
        for path, module in root.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not _UNTRAINED.search(path)
    ]


def draw(adapted: nn.Module, seed: int, std: float) -> None:
    """Draw every factor of a module whose base is frozen.

    A DoRA magnitude is only stretched, so that it stays near its norm.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for name, parameter in sorted(trained.items()):
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if "magnitude" in name or "dora_scale" in name:
            parameter.data.mul_(1 + 0.4 * noise)
        elif parameter.ndim:
            parameter.data.copy_(std * noise)


def deltas(found: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a trainer changes in the base, by the parameter's name."""
    assert found.keys() == base.keys(), "a trainer's model has other parameters"
    changes = {name: found[name] - weight for name, weight in base.items()}
    return {name: change for name, change in changes.items() if change.any()}

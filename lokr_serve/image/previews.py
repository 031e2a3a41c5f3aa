"""Previews: small images from the latents of a step, which are shrunk before they are decoded."""

from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from lokr_serve.image.plan import ImagePlan

MAX_SIDE = 256  # pixels


def preview_images(
    pipeline: DiffusionPipeline, plan: ImagePlan, latents: Tensor, vae: nn.Module
) -> list[Image]:
    """Return a small image of each of a batch's latents.

    Args:
        pipeline: That they are of.
        plan: That it runs.
        latents: [num_images, ...], in the pipeline's own shape.
        vae: What decodes them, in place of the pipeline's own.
    """
    with torch.no_grad():
        decodable = _as_decoded(pipeline, plan, latents)  # [num_images, C, h, w]
        small = _shrunk(decodable, plan).to(pipeline.components["vae"].dtype)
        return _images(pipeline, _decoded(pipeline, small, vae))


def _as_decoded(pipeline: DiffusionPipeline, plan: ImagePlan, latents: Tensor) -> Tensor:
    """Return latents as their autoencoder takes them: in their places, and of its mean and size."""
    config: dict[str, Any] = dict(pipeline.components["vae"].config)
    match pipeline:
        case Flux2Pipeline() | Flux2KleinPipeline():
            return _as_decoded_of_flux2(pipeline, plan, latents)
        case QwenImagePipeline() | QwenImageImg2ImgPipeline():
            per_latent = pipeline.vae_scale_factor
            framed = pipeline._unpack_latents(latents, plan.height, plan.width, per_latent)
            return _denormalised(framed[:, :, 0], config, scale=1.0)
        case FluxPipeline() | FluxImg2ImgPipeline():
            per_latent = pipeline.vae_scale_factor
            latents = pipeline._unpack_latents(latents, plan.height, plan.width, per_latent)
    scale = float(config["scaling_factor"])
    is_xl = isinstance(pipeline, StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline)
    if is_xl and config["latents_mean"] is not None and config["latents_std"] is not None:
        return _denormalised(latents, config, scale)
    return latents / scale + (config["shift_factor"] or 0.0)  # Stable Diffusion 1 and XL have none


def _denormalised(latents: Tensor, config: dict[str, Any], scale: float) -> Tensor:
    def channels(values: list[float]) -> Tensor:
        return torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)

    return latents * channels(config["latents_std"]) / scale + channels(config["latents_mean"])


def _as_decoded_of_flux2(
    pipeline: Flux2Pipeline | Flux2KleinPipeline, plan: ImagePlan, latents: Tensor
) -> Tensor:
    """Return latents that were normalised by the autoencoder's own statistics, in patches."""
    per_patch = pipeline.vae_scale_factor * 2
    places = torch.empty(len(latents), 1, plan.height // per_patch, plan.width // per_patch)
    ids = pipeline._prepare_latent_ids(places).to(latents.device)
    patches = pipeline._unpack_latents_with_ids(latents, ids)  # [num_images, 4 C, h / 2, w / 2]
    vae = pipeline.components["vae"]
    mean, variance = vae.bn.running_mean.to(latents), vae.bn.running_var.to(latents)
    std = (variance + vae.config.batch_norm_eps).sqrt()
    unpatchify = cast(Callable[[Tensor], Tensor], pipeline._unpatchify_latents)
    return unpatchify(patches * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1))


def _shrunk(latents: Tensor, plan: ImagePlan) -> Tensor:
    """Return the latents of an image whose longer side is at most ``MAX_SIDE``."""
    longer = max(plan.width, plan.height)
    if longer <= MAX_SIDE:
        return latents
    size = [max(side * MAX_SIDE // longer, 1) for side in latents.shape[-2:]]
    return functional.interpolate(latents, size=size, mode="area")


def _decoded(pipeline: DiffusionPipeline, latents: Tensor, vae: nn.Module) -> Tensor:
    """Return pixels, [num_images, 3, height, width]."""
    decode = cast(Callable[..., tuple[Tensor]], vae.decode)
    if isinstance(pipeline, QwenImagePipeline | QwenImageImg2ImgPipeline):
        return decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]  # of videos, one frame
    return decode(latents, return_dict=False)[0]


def _images(pipeline: DiffusionPipeline, pixels: Tensor) -> list[Image]:
    processor: VaeImageProcessor = pipeline.image_processor
    return cast(list[Image], processor.postprocess(pixels, output_type="pil"))

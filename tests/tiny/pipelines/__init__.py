"""Tiny real pipelines of diffusers, one of every family that is served, and of its variants."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from tests.tiny.pipelines import flux, stable_diffusion, with_language_model

_MAKERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "stable-diffusion": stable_diffusion.make_1_5,
    "stable-diffusion-checked": stable_diffusion.make_1_5_with_checker,
    "stable-diffusion-xl": stable_diffusion.make_xl,
    "stable-diffusion-3": stable_diffusion.make_3,
    "flux": flux.make_flux,
    "flux-schnell": flux.make_schnell,
    "flux2": with_language_model.make_flux2,
    "flux2-klein": with_language_model.make_klein,
    "qwen-image": with_language_model.make_qwen_image,
    "z-image": with_language_model.make_z_image,
}

PIPELINE_NAMES = tuple(_MAKERS)


def make_pipeline(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Return a pipeline with random weights, the same at every call.

    Args:
        name: One of PIPELINE_NAMES.
        dtype: Dtype of its weights, which are drawn in float32.
    """
    pipeline = _MAKERS[name]()
    if dtype != torch.float32:
        pipeline.to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a pipeline's folder and return it."""
    make_pipeline(name, dtype).save_pretrained(folder)
    return folder

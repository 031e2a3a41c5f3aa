"""Small LoKr files for pipelines, named as kohya's scripts name modules."""

from pathlib import Path

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn


def write_lokr(path: Path, pipeline: DiffusionPipeline, component: str, seed: int) -> Path:
    """Write a LoKr on the attention of a denoiser, with an effect that a person would see.

    Args:
        path: The file.
        pipeline: The pipeline that it is for.
        component: The denoiser.
        seed: Of the factors.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in pipeline.components[component].named_modules():
        if isinstance(module, nn.Linear) and ".attn" in name:
            num_out, num_in = module.weight.shape
            flat = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{flat}.lokr_w1"] = 0.4 * torch.randn(2, 2, generator=generator)
            w2 = 0.4 * torch.randn(num_out // 2, num_in // 2, generator=generator)
            tensors[f"{flat}.lokr_w2"] = w2
            tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path

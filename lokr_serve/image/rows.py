"""How many rows a denoiser computes for each sample, as operations are counted.

A module's row is a token or a position. What follows is their mean over a denoiser's parameters,
since an adapter costs about the same share of each module: a transformer's modules see every patch
of the image, a UNet's blocks ever fewer positions, the more parameters they have. Text is left out.
"""

from collections.abc import Iterator

from diffusers import UNet2DConditionModel
from torch import nn


def mean_rows(denoiser: nn.Module, num_patches: int) -> float:
    """Return the mean number of rows of a denoiser's parameters, for one sample.

    Args:
        denoiser: The module.
        num_patches: Of the sample, as the first of its modules sees them.
    """
    if not isinstance(denoiser, UNet2DConditionModel):
        return num_patches
    sizes = [(_num_parameters(block), level) for block, level in _blocks(denoiser)]
    rows: float = sum(size * num_patches / 4**level for size, level in sizes)
    num_parameters: int = sum(size for size, _ in sizes)
    return rows / num_parameters


def _blocks(unet: UNet2DConditionModel) -> Iterator[tuple[nn.Module, int]]:
    """Yield each block, and how often the sides of its samples have been halved."""
    last = len(unet.down_blocks) - 1
    for index, block in enumerate(unet.down_blocks):
        yield block, index
    if unet.mid_block is not None:
        yield unet.mid_block, last
    for index, block in enumerate(unet.up_blocks):
        yield block, last - index


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

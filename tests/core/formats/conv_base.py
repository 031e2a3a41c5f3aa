"""A base of one convolution, or of an embedding, and what files change of it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import draw, write

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OUT, IN = 8, 12


class Base(nn.Module):
    """A base of the layer that files change, and another."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.side = nn.Linear(1, 1, dtype=torch.float64)  # a model of an embedding alone is none

    @property
    def weight(self) -> Tensor:
        """The layer's weight."""
        return self.get_parameter("conv.weight").detach()


def conv_base(*kernel: int, **options: object) -> Base:
    """Return a base of one convolution, float64."""
    kind: Callable[..., nn.Module] = CONVS[len(kernel)]
    return Base(kind(IN, OUT, kernel, bias=False, dtype=torch.float64, **options))


def delta_of(folder: Path, base: Base, tensors: dict[str, Tensor]) -> Tensor:
    """Return what a LyCORIS file adds to the convolution."""
    named = {f"lycoris_conv.{leaf}": tensor for leaf, tensor in tensors.items()}
    return read_adapter(write(folder, named), discover(base)).delta_weights()["conv.weight"]


def lokr_of(w2: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """Return a LoKr whose w1 is [2, 3]."""
    return {"lokr_w1": draw(2, 3), "lokr_w2": w2, **others}

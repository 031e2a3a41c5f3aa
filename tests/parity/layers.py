"""Layer: one layer of each kind that adapters change, in a base of its own, and inputs for it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.pytorch_utils import Conv1D

NUM_OUT, NUM_IN = 24, 40
WEIGHT_STD = 0.2
VOCABULARY = 40


class Block(nn.Module):
    """The layer under a name with an underscore, and a plain one beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.to_out = layer
        self.side = nn.Linear(6, 6)


class Base(nn.Module):
    """A model of one layer, two modules deep."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(layer)])

    @property
    def layer(self) -> nn.Module:
        """The layer."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.to_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        output = self.layer(x)
        assert isinstance(output, Tensor)
        return output


def as_linear(base: Base) -> Base:
    """Return a base whose layer has the same matrix, in nn.Linear if it is one of the tables."""
    layer = base.layer
    if isinstance(layer, nn.Embedding):
        weight, bias = layer.weight, None
    elif isinstance(layer, Conv1D):
        weight, bias = layer.weight.mT, layer.bias
    else:
        return base
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    if bias is not None:
        linear.bias.data.copy_(bias)
    return Base(linear)


PATH = "blocks.0.to_out"
SIDE = "blocks.0.side"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A kind of layer: how to build one, and the shape of a sample."""

    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    takes_ids: bool = False

    def base(self, dtype: torch.dtype, *, seed: int = 0) -> Base:
        """Return a base of this layer; equal seeds give equal values, exact in float32."""
        base = Base(self.build())
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in base.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.data.copy_(WEIGHT_STD * noise + float(is_norm))
        return nn.Module.eval(nn.Module.to(base, dtype))

    def inputs(self, num_samples: int, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
        """Return a batch, exact in float32."""
        generator = torch.Generator().manual_seed(1000 + seed)
        shape = (num_samples, *self.sample)
        if self.takes_ids:
            return torch.randint(VOCABULARY, shape, generator=generator)
        return torch.randn(shape, generator=generator).to(dtype)


def _conv(kind: type[nn.Module], kernel: tuple[int, ...], **options: object) -> nn.Module:
    return kind(NUM_IN, NUM_OUT, kernel, **options)


LAYERS: dict[str, Layer] = {
    "linear": Layer(build=lambda: nn.Linear(NUM_IN, NUM_OUT), sample=(3, NUM_IN)),
    "linear without bias": Layer(
        build=lambda: nn.Linear(NUM_IN, NUM_OUT, bias=False), sample=(NUM_IN,)
    ),
    "square linear": Layer(build=lambda: nn.Linear(NUM_OUT, NUM_OUT), sample=(3, NUM_OUT)),
    "transformers Conv1D": Layer(build=lambda: Conv1D(NUM_OUT, NUM_IN), sample=(3, NUM_IN)),
    "conv1d": Layer(
        build=lambda: nn.Conv1d(NUM_IN, NUM_OUT, 3, stride=2, padding=1), sample=(NUM_IN, 9)
    ),
    "conv1d dilated": Layer(
        build=lambda: nn.Conv1d(NUM_IN, NUM_OUT, 3, dilation=2, padding="same", bias=False),
        sample=(NUM_IN, 7),
    ),
    "conv2d": Layer(build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, 3, padding=1), sample=(NUM_IN, 5, 6)),
    "conv2d strided": Layer(
        build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, (3, 2), stride=(2, 1), padding=(0, 1), bias=False),
        sample=(NUM_IN, 7, 5),
    ),
    "conv2d dilated": Layer(
        build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, 3, dilation=(2, 1), padding=2),
        sample=(NUM_IN, 6, 5),
    ),
    "conv2d of 1x1": Layer(build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, 1), sample=(NUM_IN, 4, 3)),
    "conv2d in 2 groups": Layer(
        build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, 3, padding=1, groups=2), sample=(NUM_IN, 4, 5)
    ),
    "conv2d in 8 groups": Layer(
        build=lambda: nn.Conv2d(NUM_IN, NUM_OUT, 3, stride=2, groups=8), sample=(NUM_IN, 5, 5)
    ),
    "conv2d depthwise": Layer(
        build=lambda: nn.Conv2d(NUM_OUT, NUM_OUT, 3, padding=1, groups=NUM_OUT),
        sample=(NUM_OUT, 4, 4),
    ),
    "conv3d": Layer(
        build=lambda: nn.Conv3d(NUM_IN, NUM_OUT, (3, 2, 3), padding=(1, 0, 1), stride=(1, 1, 2)),
        sample=(NUM_IN, 3, 4, 5),
    ),
    "embedding": Layer(
        build=lambda: nn.Embedding(VOCABULARY, NUM_OUT), sample=(5,), takes_ids=True
    ),
    "scaled embedding": Layer(
        build=lambda: Gemma3TextScaledWordEmbedding(VOCABULARY, NUM_OUT, 0, embed_scale=5.0),
        sample=(5,),
        takes_ids=True,
    ),
    "layer norm": Layer(build=lambda: nn.LayerNorm(NUM_OUT), sample=(3, NUM_OUT)),
    "layer norm without bias": Layer(
        build=lambda: nn.LayerNorm(NUM_OUT, bias=False), sample=(3, NUM_OUT)
    ),
    "layer norm of 1 + weight": Layer(
        build=lambda: NemotronLayerNorm1P(NUM_OUT), sample=(3, NUM_OUT)
    ),
    "rms norm": Layer(build=lambda: nn.RMSNorm(NUM_OUT), sample=(3, NUM_OUT)),
    "group norm": Layer(build=lambda: nn.GroupNorm(4, NUM_OUT), sample=(NUM_OUT, 4, 3)),
}
LINEAR = ("linear", "linear without bias", "square linear")
CONV1D = ("conv1d", "conv1d dilated")
CONV2D = ("conv2d", "conv2d strided", "conv2d dilated", "conv2d of 1x1")
GROUPED = ("conv2d in 2 groups", "conv2d in 8 groups", "conv2d depthwise")
CONV3D = ("conv3d",)
PLAIN_NORMS = ("layer norm", "layer norm of 1 + weight", "group norm")
NORMS = (*PLAIN_NORMS, "layer norm without bias", "rms norm")

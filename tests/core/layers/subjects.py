"""Subjects: one layer of a random kind and shape, with the plain definition of what it computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from lokr_core.ops.geometry import Conv, ConvGeometry
from lokr_core.ops.torch_ops import delta_conv
from tests.core.factors import draw

Definition = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of x, a matrix [O, C], a bias


class Host(nn.Module):
    """A model of the layer alone, with a linear layer that nobody calls."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.side = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out: Tensor = self.layer(x)
        return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """A layer of which the sizes are products, so that a Kronecker product fits them."""

    kind: str
    layer: nn.Module
    outs: tuple[int, int]  # O1 and O2
    ins: tuple[int, int]  # I1 and I2, without taps
    kernel: tuple[int, ...]
    sample: tuple[int, ...]  # shape of one row of a batch
    define: Definition

    @property
    def num_outputs(self) -> int:
        """O."""
        return self.outs[0] * self.outs[1]

    @property
    def num_taps(self) -> int:
        """K."""
        return torch.Size(self.kernel).numel()

    @property
    def num_columns(self) -> int:
        """C, taps included."""
        return self.ins[0] * self.ins[1] * self.num_taps

    def host(self) -> Host:
        """Return a model with parameters drawn once and for all, in float64."""
        host = Host(self.layer).requires_grad_(False).double().eval()
        for seed, parameter in enumerate(host.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed))
        return host

    def inputs(self, num_rows: int, seed: int) -> Tensor:
        """Return a batch."""
        if self.kind.endswith("embedding"):
            generator = torch.Generator().manual_seed(seed)
            shape = num_rows, *self.sample
            return torch.randint(0, self.num_outputs, shape, generator=generator)
        return draw(num_rows, *self.sample, seed=seed)


SMALL = st.integers(1, 3)


@st.composite
def linears(drawing: st.DrawFn) -> Subject:
    """Draw a linear layer, as torch or as transformers has it."""
    outs, ins = (drawing(SMALL), drawing(SMALL)), (drawing(SMALL), drawing(SMALL))
    num_in, num_out = ins[0] * ins[1], outs[0] * outs[1]
    layer: nn.Module = nn.Linear(num_in, num_out, bias=drawing(st.booleans()))
    if drawing(st.booleans()):
        layer = Conv1D(num_out, num_in)
    return Subject(
        kind="linear",
        layer=layer,
        outs=outs,
        ins=ins,
        kernel=(),
        sample=drawing(st.sampled_from([(num_in,), (2, num_in), (0, num_in)])),
        define=functional.linear,
    )


_CONVS: list[type[Conv]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]


@st.composite
def convs(drawing: st.DrawFn) -> Subject:
    """Draw a convolution of any geometry."""
    num_axes = drawing(st.integers(1, 3))
    groups = drawing(st.integers(1, 2))
    outs = drawing(SMALL), drawing(SMALL)
    outs = drawing(st.sampled_from([(outs[0] * groups, outs[1]), (outs[0], outs[1] * groups)]))
    ins = drawing(SMALL), drawing(SMALL)
    kernel = tuple(drawing(SMALL) for _ in range(num_axes))
    padding: str | tuple[int, ...] = tuple(drawing(st.integers(0, 2)) for _ in kernel)
    stride = tuple(drawing(st.integers(1, 2)) for _ in kernel)
    if drawing(st.booleans()):
        padding = drawing(st.sampled_from(["same", "valid"]))
        stride = (1,) * num_axes
    num_in = groups * ins[0] * ins[1]
    layer = _CONVS[num_axes - 1](
        num_in,
        outs[0] * outs[1],
        kernel,  # type: ignore[arg-type]  # one number for each axis
        stride=stride,  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=tuple(drawing(st.integers(1, 2)) for _ in kernel),  # type: ignore[arg-type]
        groups=groups,
        bias=drawing(st.booleans()),
        padding_mode=drawing(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    geometry = ConvGeometry.of(layer)

    def define(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = delta_conv(x, weight, geometry)
        return out if bias is None else out + bias.view(-1, *(1,) * num_axes)

    return Subject(
        kind="conv",
        layer=layer,
        outs=outs,
        ins=ins,
        kernel=kernel,
        sample=(num_in, *(drawing(st.integers(5, 7)) for _ in kernel)),
        define=define,
    )


@st.composite
def embeddings(drawing: st.DrawFn) -> Subject:
    """Draw a table, which may scale its rows."""
    outs, ins = (drawing(SMALL), drawing(SMALL)), (drawing(SMALL), drawing(SMALL))
    vocab, width = outs[0] * outs[1], ins[0] * ins[1]
    factor = drawing(st.sampled_from([1.0, 3.0]))
    padding = vocab - 1 if drawing(st.booleans()) else None
    layer: nn.Module = nn.Embedding(vocab, width, padding_idx=padding)
    if factor != 1:
        layer = Gemma3TextScaledWordEmbedding(vocab, width, vocab - 1, embed_scale=factor)

    def define(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is None
        return factor * weight[x]

    return Subject(
        kind="embedding",
        layer=layer,
        outs=outs,
        ins=ins,
        kernel=(),
        sample=drawing(st.sampled_from([(), (4,), (2, 3)])),
        define=define,
    )


def _root_mean_square(x: Tensor, eps: float) -> Tensor:
    # The classes of transformers compute it in float32, whatever the dtype.
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@st.composite
def norms(drawing: st.DrawFn) -> Subject:
    """Draw a norm."""
    width, eps = drawing(st.sampled_from([2, 4, 6])), 1e-5
    kind = drawing(st.sampled_from(["layer norm", "group norm", "rms norm", "torch", "gemma"]))
    layers: dict[str, Callable[[], nn.Module]] = {
        "layer norm": lambda: nn.LayerNorm(width, eps),
        "group norm": lambda: nn.GroupNorm(2, width, eps),
        "rms norm": lambda: LlamaRMSNorm(width, eps),
        "torch": lambda: nn.RMSNorm(width, eps),
        "gemma": lambda: GemmaRMSNorm(width, eps),
    }

    def define(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values, shift = weight[:, 0], 0 if bias is None else bias
        match kind:
            case "layer norm":
                return functional.layer_norm(x, (width,), values, bias, eps)
            case "group norm":
                return functional.group_norm(x, 2, values, bias, eps)
            case "torch":
                return functional.rms_norm(x, (width,), values, eps) + shift
            case "rms norm":
                return _root_mean_square(x, eps) * values + shift
            case _:
                return _root_mean_square(x, eps) * (1 + values) + shift

    return Subject(
        kind="norm",
        layer=layers[kind](),
        outs=(1, width),
        ins=(1, 1),
        kernel=(),
        sample=(width, 3, 2) if kind == "group norm" else (3, width),
        define=define,
    )

"""FLUX.1 under both of its names: fused projections as published, split ones as in diffusers.

Both trees hold the same numbers; trainers are given one, and this project is given the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

NUM_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """An original module, and the diffusers modules that share its outputs."""

    original: str
    split: tuple[str, ...]
    is_swapped: bool = False  # the halves of the outputs have changed places


_SINGLE = "single_transformer_blocks.0"
_ATTENTION = "transformer_blocks.0.attn"
FUSIONS: Mapping[str, Fusion] = {
    "qkv of images": Fusion(
        original="double_blocks.0.img_attn.qkv",
        split=tuple(f"{_ATTENTION}.to_{part}" for part in "qkv"),
    ),
    "qkv of text": Fusion(
        original="double_blocks.0.txt_attn.qkv",
        split=tuple(f"{_ATTENTION}.add_{part}_proj" for part in "qkv"),
    ),
    "qkv and mlp, unequal": Fusion(
        original="single_blocks.0.linear1",
        split=(*(f"{_SINGLE}.attn.to_{part}" for part in "qkv"), f"{_SINGLE}.proj_mlp"),
    ),
    "swapped halves": Fusion(
        original="final_layer.adaLN_modulation.1", split=("norm_out.linear",), is_swapped=True
    ),
    "one to one": Fusion(
        original="double_blocks.0.img_mlp.0", split=("transformer_blocks.0.ff.net.0.proj",)
    ),
}
# Names by which the original is known, beside the fused ones.
_MARKS = {"vector_in.in_layer": "time_text_embed.text_embedder.linear_1"}


def split_base(dtype: torch.dtype) -> nn.Module:
    """Return a tiny FLUX.1 of diffusers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            joint_attention_dim=6,
            pooled_projection_dim=5,
            in_channels=4,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 4),
        )
    assert isinstance(model, nn.Module)
    return nn.Module.eval(nn.Module.to(model, dtype))


def fused_base(dtype: torch.dtype) -> nn.Module:
    """Return the modules of the original that hold the same weights."""
    model, split = nn.Module(), split_base(dtype)
    for fusion in FUSIONS.values():
        _put(model, fusion.original, _fused([_linear(split, path) for path in fusion.split]))
        if fusion.is_swapped:
            fused = _linear(model, fusion.original)
            for parameter in fused.parameters():
                parameter.data = swapped(parameter.data, dim=0)
    for original, path in _MARKS.items():
        _put(model, original, _linear(split, path))
    return model


def swapped(x: Tensor, dim: int = -1) -> Tensor:
    """Return a tensor whose halves have changed places."""
    first, second = x.chunk(2, dim)
    return torch.cat([second, first], dim)


def answer_of_split(model: nn.Module, fusion: Fusion, x: Tensor) -> Tensor:
    """Return the outputs of the split modules, in the order of the original."""
    outputs = torch.cat([_call(model, path, x) for path in fusion.split], -1)
    return swapped(outputs) if fusion.is_swapped else outputs


def answer_of_fused(model: nn.Module, fusion: Fusion, x: Tensor) -> Tensor:
    """Return the outputs of the original module."""
    return _call(model, fusion.original, x)


Answer = Callable[[nn.Module, Fusion, Tensor], Tensor]


def inputs(fusion: Fusion, dtype: torch.dtype) -> Tensor:
    """Return a batch for the modules of a fusion."""
    width = _linear(split_base(dtype), fusion.split[0]).in_features
    generator = torch.Generator().manual_seed(5)
    return torch.randn(NUM_SAMPLES, 2, width, generator=generator).to(dtype)


def _call(model: nn.Module, path: str, x: Tensor) -> Tensor:
    answer = model.get_submodule(path)(x)
    assert isinstance(answer, Tensor)
    return answer


def _linear(model: nn.Module, path: str) -> nn.Linear:
    module = model.get_submodule(path)
    assert isinstance(module, nn.Linear)
    return module


def _fused(parts: Sequence[nn.Linear]) -> nn.Linear:
    weight = torch.cat([part.weight.detach() for part in parts])
    fused = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    fused.weight.data.copy_(weight)
    fused.bias.data.copy_(torch.cat([part.bias.detach() for part in parts]))
    return fused


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent = model
    *names, last = path.split(".")
    for name in names:
        if name not in dict(parent.named_children()):
            parent.add_module(name, nn.Module())
        parent = parent.get_submodule(name)
    parent.add_module(last, module)

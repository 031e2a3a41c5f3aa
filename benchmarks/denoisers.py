"""Random denoisers of the widths that people train for, with fewer blocks, and PEFT's twins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.models import twin_over
from benchmarks.peers import quiet
from benchmarks.scope import Scope

NUM_IMAGES = 4
_NUM_TEXT_TOKENS = 77
_ALL = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an adapter is trained."""

    name: str
    targets: str  # a pattern over whole module paths
    rank: int
    factor: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Denoiser:
    """A denoiser, a batch for it, and which of its modules people train."""

    name: str
    model: nn.Module
    inputs: Mapping[str, Tensor]  # [NUM_IMAGES, ...]
    linears: str  # of attention and feed-forward
    blocks: str  # every linear module and convolution of the blocks

    @torch.no_grad()
    def step(self, model: nn.Module, rows: slice = _ALL) -> Tensor:
        """Return what a twin of the model predicts for some rows of the batch."""
        (out,) = model(**{name: x[rows] for name, x in self.inputs.items()}, return_dict=False)
        predicted: Tensor = out
        return predicted


def denoisers(scope: Scope) -> list[Denoiser]:
    """Return a UNet and a transformer, the same for every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [_unet(scope), _transformer(scope)]


def _unet(scope: Scope) -> Denoiser:
    """Return a UNet of Stable Diffusion 1.5's widths, 323 M parameters."""
    widths, text = ((32, 64, 64), 32) if scope.is_small else ((320, 640, 1280), 768)
    model = UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=text,
        attention_head_dim=8,
    )
    side = scope.count(32, 8)
    return Denoiser(
        name="UNet",
        model=nn.Module.eval(model).requires_grad_(False),
        inputs={
            "sample": torch.randn(NUM_IMAGES, 4, side, side),
            "timestep": torch.linspace(100, 900, NUM_IMAGES),
            "encoder_hidden_states": torch.randn(NUM_IMAGES, _NUM_TEXT_TOKENS, text),
        },
        linears=r".*\.(to_[qkv]|to_out\.0|net\.0\.proj|net\.2)",
        blocks=r".*\.(to_[qkv]|to_out\.0|net\.0\.proj|net\.2|conv[12]?|conv_shortcut|proj_in"
        r"|proj_out|time_emb_proj)",
    )


def _transformer(scope: Scope) -> Denoiser:
    """Return a transformer of Stable Diffusion 3's width, two of its blocks, 159 M parameters."""
    heads, head, text, pooled = (2, 16, 32, 32) if scope.is_small else (24, 64, 4096, 2048)
    model = SD3Transformer2DModel(
        num_layers=2,
        attention_head_dim=head,
        num_attention_heads=heads,
        joint_attention_dim=text,
        caption_projection_dim=heads * head,
        pooled_projection_dim=pooled,
    )
    side = scope.count(32, 8)
    return Denoiser(
        name="transformer",
        model=nn.Module.eval(model).requires_grad_(False),
        inputs={
            "hidden_states": torch.randn(NUM_IMAGES, 16, side, side),
            "timestep": torch.linspace(100, 900, NUM_IMAGES),
            "encoder_hidden_states": torch.randn(NUM_IMAGES, _NUM_TEXT_TOKENS, text),
            "pooled_projections": torch.randn(NUM_IMAGES, pooled),
        },
        linears=r"transformer_blocks\..*\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out"
        r"|net\.0\.proj|net\.2)",
        blocks=r"transformer_blocks\..*\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out"
        r"|net\.0\.proj|net\.2|norm1(_context)?\.linear)",
    )


class ImagePeer:
    """A denoiser with an adapter of PEFT's for each image, of which it applies the one set."""

    def __init__(self, denoiser: Denoiser, recipe: Recipe) -> None:
        """Put the adapters on a twin of the model, all factors random."""
        self._denoiser = denoiser
        self._names = [f"{recipe.name.replace(' ', '-')}-{index}" for index in range(NUM_IMAGES)]
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            twin = twin_over(denoiser.model)
            self._model = peft.PeftModel(twin, _config(recipe), self._names[0])
            for name in self._names[1:]:
                self._model.add_adapter(name, _config(recipe))

    def save(self, folder: Path) -> Sequence[Path]:
        """Write every adapter and return their folders."""
        with quiet():
            self._model.save_pretrained(str(folder))
        return [folder / name for name in self._names]

    def step(self) -> Tensor:
        """Run a step image by image, switching the adapter for each."""
        rows = []
        for index, name in enumerate(self._names):
            self._model.set_adapter(name)
            rows.append(self._denoiser.step(self._model, slice(index, index + 1)))
        return torch.cat(rows)


def _config(recipe: Recipe) -> peft.LoKrConfig:
    return peft.LoKrConfig(
        r=recipe.rank,
        alpha=recipe.rank,
        decompose_factor=recipe.factor,
        target_modules=recipe.targets,
        init_weights=False,
    )

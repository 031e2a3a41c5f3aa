"""A base of two linear modules, and adapter files for it written by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec


class Base(nn.Module):
    """Two projections, one of them under a path whose name has an underscore."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.q_proj = nn.Linear(12, 8, dtype=dtype)
        self.block.v_proj = nn.Linear(12, 8, dtype=dtype)


Q, V = "block.q_proj", "block.v_proj"
FLAT_Q, FLAT_V = "lycoris_block_q_proj", "lycoris_block_v_proj"
PEFT_Q, PEFT_V = f"base_model.model.{Q}", f"base_model.model.{V}"


def base_spec(dtype: torch.dtype = torch.float32) -> ModelSpec:
    """Return the modules of a fresh base, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return discover(Base(dtype))


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return a random tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(module: str, *, alpha: float | None = 6.0, rank: int = 3) -> dict[str, Tensor]:
    """Return a LoKr of a full w1 [2, 3] and a low-rank w2 [4, 4] for one module."""
    tensors = {
        f"{module}.lokr_w1": draw(2, 3, seed=1),
        f"{module}.lokr_w2_a": draw(4, rank, seed=2),
        f"{module}.lokr_w2_b": draw(rank, 4, seed=3),
    }
    return tensors if alpha is None else {f"{module}.alpha": torch.tensor(alpha), **tensors}


def full(module: str, *, alpha: float | None = 6.0) -> dict[str, Tensor]:
    """Return a LoKr of two full factors for one module."""
    tensors = {f"{module}.lokr_w1": draw(2, 3, seed=1), f"{module}.lokr_w2": draw(4, 4, seed=2)}
    return tensors if alpha is None else {f"{module}.alpha": torch.tensor(alpha), **tensors}


def lora(module: str, *, rank: int = 3) -> dict[str, Tensor]:
    """Return a LoRA in PEFT's names for one module."""
    return {
        f"{module}.lora_A.weight": draw(rank, 12, seed=1),
        f"{module}.lora_B.weight": draw(8, rank, seed=2),
    }


def unscaled(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    """Return the delta of :func:`low_rank` or :func:`full` at scale 1, float64, by torch.kron."""
    parts = {key.removeprefix(f"{module}."): t.double() for key, t in tensors.items()}
    w2 = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return torch.kron(parts["lokr_w1"], w2)


def write(
    folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file and return its path."""
    path = folder / "adapter.safetensors"
    save_file(dict(tensors), path, dict(metadata) if metadata else None)
    return path


def write_peft(folder: Path, tensors: Mapping[str, Tensor], **config: object) -> Path:
    """Write a folder of PEFT, by default for a LoKr of r 3 and alpha 6, and return it."""
    fields = {"peft_type": "LOKR", "r": 3, "alpha": 6, "rank_dropout_scale": False, **config}
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    text = json.dumps({name: value for name, value in fields.items() if value is not ...})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder

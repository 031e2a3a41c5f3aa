"""Files made by hand, one wrong thing or odd form at a time."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SIZE = 12


class Toy(nn.Module):
    """A module of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SIZE, SIZE)
        self.blocks = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.conv = nn.Conv2d(SIZE, SIZE, 3)
        self.norm = nn.LayerNorm(SIZE)


def lokr(path: str, *, size: int = SIZE) -> dict[str, Tensor]:
    """Return a LoKr of two full factors."""
    return {
        f"{path}.lokr_w1": torch.full((2, 2), 0.5),
        f"{path}.lokr_w2": torch.full((size // 2, size // 2), 0.25),
        f"{path}.alpha": torch.tensor(1.0),
    }


def lora(path: str, rank: int = 2) -> dict[str, Tensor]:
    """Return a LoRA of scale 2."""
    return {
        f"{path}.lora_up.weight": torch.full((SIZE, rank), 0.5),
        f"{path}.lora_down.weight": torch.full((rank, SIZE), 0.5),
        f"{path}.alpha": torch.tensor(2.0 * rank),
    }


def write(
    path: Path, *parts: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file of all these tensors."""
    tensors = {key: tensor for part in parts for key, tensor in part.items()}
    save_file(tensors, path, dict(metadata or {}))
    return path

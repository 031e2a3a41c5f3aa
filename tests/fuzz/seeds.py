"""The files that are mutated: of each kind, made by the real trainers for one small base."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from lycoris import LycorisNetwork, create_lycoris
from torch import Tensor, nn

from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.fuzz.files import AdapterFiles

LINEAR = ["fc1", "fc2"]
LYCORIS: Mapping[str, Mapping[str, Any]] = {
    "lokr full": {"algo": "lokr", "linear_dim": 10000, "factor": 4},
    "lokr low rank": {"algo": "lokr", "linear_dim": 2, "decompose_both": True, "factor": 4},
    "lokr tucker": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "use_tucker": True},
    "lokr linear": {"algo": "lokr", "linear_dim": 2, "factor": 4, "decompose_both": True},
    "loha linear": {"algo": "loha", "linear_dim": 2, "dora_wd": True},
    "lokr dora": {"algo": "lokr", "linear_dim": 2, "dora_wd": True},
    "loha": {"algo": "loha", "linear_dim": 2},
    "loha tucker": {"algo": "loha", "linear_dim": 2, "conv_dim": 2, "use_tucker": True},
    "locon": {"algo": "locon", "linear_dim": 2, "conv_dim": 2, "use_tucker": True},
    "full and norms": {"algo": "full", "train_norm": True},
}
PEFT: Mapping[str, peft.PeftConfig] = {
    "peft lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=LINEAR, rank_pattern={"fc1": 4}),
    "peft lokr both": peft.LoKrConfig(
        r=1, alpha=3, target_modules=[*LINEAR, "conv"], decompose_both=True,
        use_effective_conv2d=True,
    ),
    "peft loha": peft.LoHaConfig(r=2, alpha=3, target_modules=LINEAR),
    "peft lora": peft.LoraConfig(r=2, target_modules=[*LINEAR, "conv", "emb"]),
    "peft linear lora": peft.LoraConfig(r=2, target_modules=LINEAR, use_rslora=True),
    "peft dora": peft.LoraConfig(r=2, target_modules=LINEAR, use_dora=True),
    "peft head": peft.LoraConfig(r=2, target_modules=LINEAR, modules_to_save=["head"]),
}  # fmt: skip


class Base(nn.Module):
    """A module of each kind that adapters change."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 12)
        self.block = nn.ModuleDict({"fc1": nn.Linear(12, 16), "fc2": nn.Linear(16, 12)})
        self.conv = nn.Conv2d(4, 8, 3)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Run the modules in a row."""
        hidden = self.block["fc2"](self.block["fc1"](self.emb(ids)))
        head: Tensor = self.head(self.norm(hidden))
        return head


def base() -> Base:
    """Return the base, the same one every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Base()


def base_spec() -> ModelSpec:
    """Return the modules of the base."""
    return discover(base())


def make_seeds(folder: Path) -> list[AdapterFiles]:
    """Return files of every kind, half of those of LyCORIS in float16."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return [*_peft_seeds(folder), *_lycoris_seeds(folder)]


def _randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape))


def _peft_seeds(folder: Path) -> Iterator[AdapterFiles]:
    for name, config in PEFT.items():
        model = peft.get_peft_model(base(), config)
        _randomise(model)
        model.save_pretrained(str(folder / name))
        yield AdapterFiles.read(name, folder / name)


def _lycoris_seeds(folder: Path) -> Iterator[AdapterFiles]:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    for index, (name, options) in enumerate(LYCORIS.items()):
        names = r".*fc.*" if name.endswith("linear") else r".*(fc|conv|norm).*"
        LycorisNetwork.apply_preset({"target_module": [], "target_name": [names]})
        network = create_lycoris(base(), 1.0, linear_alpha=1.0, **options)
        network.apply_to()
        _randomise(network)
        path = folder / f"{name}.safetensors"
        dtype = torch.float16 if index % 2 else torch.float32
        network.save_weights(str(path), dtype, {"ss_network_module": "lycoris.kohya"})
        yield AdapterFiles.read(name, path)

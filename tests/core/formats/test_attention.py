"""Adapters of torch's own attention, which PEFT trains and nobody can route."""

from collections.abc import Mapping
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lokr_core.errors import UnsupportedModuleError
from lokr_core.formats import read_adapter
from lokr_core.formats.binding import bind
from lokr_core.formats.inspect import inspect_adapter
from lokr_core.formats.names import ModuleNames
from lokr_core.layers.discover import discover
from tests.parity.trained import quiet


class Block(nn.Module):
    """Attention as torch has it, and a linear module."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A LoRA by PEFT of both."""
    config = peft.LoraConfig(r=2, target_modules=["mha", "fc"], init_lora_weights=False)
    with quiet():
        peft.get_peft_model(Block(), config).save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora"


@pytest.mark.parametrize("partial", [False, True])
def test_attention_of_torch_is_refused_by_name(trained: Path, partial: bool) -> None:
    """To call it unknown and advise to leave it out would cost most of what was trained."""
    with pytest.raises(UnsupportedModuleError, match="MultiheadAttention") as raised:
        read_adapter(trained, discover(Block()), partial=partial)
    assert raised.value.module == "mha.out_proj"


def test_inspection_tells_of_attention_and_its_projection(trained: Path) -> None:
    """All that is wrong is told at once, and nothing that is not."""
    report = inspect_adapter(trained, discover(Block())).report

    assert [problem.module for problem in report.problems] == ["mha.out_proj", "mha"]
    assert "has its projections as parameters" in report.problems[1].message
    assert report.fit is not None
    assert report.fit.unmatched.count == 0


REFUSED: Mapping[str, tuple[str, list[str]]] = {
    "in PEFT's names": ("base_model.model.mha", ["transformer.mha"]),
    "of a component": ("transformer.mha", ["transformer.mha"]),
    "of another component": ("vae.mha", ["vae.mha"]),
    "a name that no module has": ("base_model.model.attention", []),
    "a layer of PEFT around another": ("mha.base_layer.out_proj", ["transformer.mha.out_proj"]),
    "a layer of PEFT around a module that can be routed": ("transformer.base_layer.fc", []),
}


@pytest.mark.parametrize(("name", "modules"), REFUSED.values(), ids=REFUSED)
def test_attention_is_found_by_its_path(name: str, modules: list[str]) -> None:
    """A bare path is one of the model that is trained, not of any other part of a pipeline."""
    names = ModuleNames(discover({"transformer": Block(), "vae": Block()}))
    tensors: dict[str, Tensor] = {f"{name}.lora_A.weight": torch.ones(2, 8)}

    binding = bind(tensors, names)

    assert [error.module for error in binding.refused] == modules
    assert len(binding.unmatched) == (0 if modules else 1)


def test_peft_names_its_layers_as_it_did(trained: Path) -> None:
    """Else the names above are no longer what is met."""
    keys = {key.removesuffix(".weight") for key in load_file(trained / "adapter_model.safetensors")}

    assert {key for key in keys if key.endswith("A")} == {
        "base_model.model.fc.lora_A",
        "base_model.model.mha.lora_A",
        "base_model.model.mha.base_layer.out_proj.lora_A",
    }

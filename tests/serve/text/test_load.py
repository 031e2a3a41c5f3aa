"""Loading the base model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from lokr_core import LokrError
from lokr_serve.config import ModelSettings
from lokr_serve.errors import ModelError, SettingsError
from lokr_serve.text.load import load_model
from tests.tiny import save_model, tiny_llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of this test's own."""
    return save_model(tmp_path / "model", tiny_llama())


def refusal(folder: Path, device: str = "cpu", kind: type[LokrError] = SettingsError) -> str:
    """Return what a folder is refused with; most often the setting that names it is wrong."""
    with pytest.raises(kind) as caught:
        load_model(ModelSettings(path=folder, device=device))
    return str(caught.value)


def test_a_model_is_ready_for_inference(folder: Path) -> None:
    """Dropout or gradients would make results depend on more than the request."""
    model = load_model(ModelSettings(path=folder, dtype="float64"))

    assert not model.training
    assert all(not p.requires_grad and p.dtype == torch.float64 for p in model.parameters())
    torch.testing.assert_close(
        dict(model.named_parameters()), dict(tiny_llama(torch.float64).named_parameters())
    )


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    """A mistyped path is the most common mistake."""
    assert f"{tmp_path}/none is not a model folder" in refusal(tmp_path / "none")


def test_another_kind_of_model_is_refused_by_its_type(tmp_path: Path) -> None:
    """An encoder would load with a head of random numbers, and generate noise."""
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    BertModel(config).save_pretrained(tmp_path)
    text = refusal(tmp_path)

    assert "not a causal language model" in text
    assert "'bert'" in text


def test_an_unknown_type_is_refused(folder: Path) -> None:
    """A model newer than the installed transformers cannot be read right."""
    (folder / "config.json").write_text(json.dumps({"model_type": "newer"}))

    assert "newer" in refusal(folder)


def test_sizes_that_do_not_fit_are_refused(folder: Path) -> None:
    """Transformers checks them with errors of a class of their own."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 63}))

    assert "is not a multiple" in refusal(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    """They would be random numbers."""
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    assert "lacks 1 weights, such as 'lm_head.weight'" in refusal(folder, kind=ModelError)


def test_a_truncated_file_is_refused(folder: Path, tmp_path: Path) -> None:
    """A copy that broke off must not come up."""
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    (broken / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])

    assert "cannot be loaded" in refusal(broken, kind=ModelError)


@pytest.mark.parametrize("device", ["cuda:0,cuda:1", "gpu", "meta", "cuda:99"])
def test_a_device_that_cannot_serve_is_refused(folder: Path, device: str) -> None:
    """Falling back to another device would be a surprise; several are not served."""
    assert repr(device) in refusal(folder, device)


def test_auto_takes_the_device_that_is_there(folder: Path) -> None:
    """Nobody should have to say what the machine has."""
    model = load_model(ModelSettings(path=folder, device="auto"))

    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")

"""Deltas of what the file itself replaces: added up in reading, told apart in writing."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lokr_core.formats.convert import Layout, convert
from lokr_core.spec import ModelSpec
from tests.core.convert.loaded import assert_same_changes, changes_of, peft_changes, read
from tests.tiny import ModelFactory, peft_lora, tiny_llama

TABLE = "model.embed_tokens"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A LoRA of scale 2 by PEFT, which saves its embedding table too; the base has another."""
    other = partial(tiny_llama, torch.float64, seed=1)
    targets = ["embed_tokens", "q_proj"]
    return peft_lora(other, tmp_path / "in", r=2, lora_alpha=4, target_modules=targets)


def test_a_delta_of_a_replaced_table_keeps_its_scale(
    trained: Path, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """The adapter as it is read has the sum alone, which tells no scale."""
    out = tmp_path / "out.safetensors"
    convert(trained, out, Layout.CANONICAL, spec=spec)
    changes = changes_of(read(make_model, out))

    assert f"{TABLE}.weight" in changes
    assert_same_changes(changes, changes_of(read(make_model, trained)))
    assert load_file(out)[f"{TABLE}.alpha"].item() == 4


def test_peft_makes_the_same_of_a_delta_of_a_replaced_table(
    trained: Path, make_model: ModelFactory, spec: ModelSpec, tmp_path: Path
) -> None:
    """Its layout has one alpha for most modules; a wrong one for the table would be a pattern."""
    out = tmp_path / "out"
    convert(trained, out, Layout.PEFT, spec=spec)
    config = json.loads((out / "adapter_config.json").read_text())
    changes = peft_changes(make_model, out)

    assert f"{TABLE}.weight" in changes
    assert_same_changes(changes, peft_changes(make_model, trained))
    assert (config["r"], config["lora_alpha"], config["alpha_pattern"]) == (2, 4, {})

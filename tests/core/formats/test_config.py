"""adapter_config.json: what changes the mathematics is honoured or refused by the field's name."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from lokr_core.errors import AdapterConfigError, AdapterTensorError
from lokr_core.formats import read_adapter
from lokr_core.formats.peft import parse_config
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.core.formats.hand_made import (
    FLAT_Q,
    PEFT_Q,
    PEFT_V,
    Base,
    Q,
    base_spec,
    full,
    lora,
    low_rank,
    write,
    write_peft,
)

REFUSED: dict[str, Any] = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "ensure_weight_tying": True,
    "init_lora_weights": "pissa_niter_16",
    "kasa_config": {"beta": 1},
    "layer_replication": [[0, 2]],
    "megatron_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "target_parameters": ["experts.w"],
    "trainable_token_indices": [5],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 2},
}


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
def test_field_that_changes_the_result_is_refused_by_name(
    tmp_path: Path, field: str, value: object
) -> None:
    """Serving such an adapter as a plain one would be wrong without a sign of it."""
    folder = write_peft(tmp_path, lora(PEFT_Q), peft_type="LORA", **{field: value})

    with pytest.raises(AdapterConfigError, match=f"^{field}: .* (not served|base weights too)"):
        read_adapter(folder, base_spec())


@pytest.mark.parametrize(
    "config", [peft.LoraConfig(), peft.LoKrConfig(), peft.LoHaConfig()], ids=repr
)
def test_every_default_of_peft_is_accepted(config: peft.PeftConfig, tmp_path: Path) -> None:
    """A field that a new peft adds must be sorted into what changes the result and what not."""
    config.save_pretrained(str(tmp_path))
    parsed = parse_config((tmp_path / "adapter_config.json").read_bytes())

    assert (parsed.r, parsed.alpha) == (8, 8)
    assert parsed.unknown_fields == ()
    assert not parsed.is_unscaled


@pytest.mark.parametrize("start", [None, False, "gaussian", "eva", "orthogonal", "mica"])
def test_way_to_start_does_not_matter(tmp_path: Path, start: object) -> None:
    """How factors were drawn is no concern of the one who has them."""
    folder = write_peft(tmp_path, lora(PEFT_Q), peft_type="LORA", init_lora_weights=start)

    assert read_adapter(folder, base_spec()).warnings == ()


def test_field_that_is_not_known_is_reported(tmp_path: Path) -> None:
    """It may belong to a later peft and change the result; the operator should look."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), use_magic=True, use_other=None)

    (warning,) = read_adapter(folder, base_spec()).warnings

    assert warning == "not known here and not regarded, of adapter_config.json: 'use_magic'"


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"peft_type": ...}, "^peft_type: None is not one of LOKR, LOHA, LORA"),
    "another type": ({"peft_type": "OFT"}, "^peft_type: 'OFT' is not one of"),
    "a type that is no text": ({"peft_type": ["LORA"]}, "^peft_type: "),
    "r of zero": ({"r": 0}, "^r: 0 is not a positive"),
    "r that is no whole number": ({"r": 2.5}, "^r: 2.5 is not"),
    "r that is true": ({"r": True}, "^r: True is not"),
    "alpha that is text": ({"alpha": "6"}, "^alpha: '6' is not a finite"),
    "alpha that is infinite": ({"alpha": float("inf")}, "^alpha: inf is not a finite"),
    "alpha of a LoRA": ({"peft_type": "LORA", "lora_alpha": "6"}, "^lora_alpha: '6' is not a"),
    "alpha that is true": ({"alpha": True}, "^alpha: True is not"),
    "patterns that are a list": ({"rank_pattern": ["q"]}, "^rank_pattern: .* no JSON object"),
    "a pattern that is none": ({"alpha_pattern": {"(": 1}}, r"^alpha_pattern: '\(' is no pattern"),
    "a pattern's rank of zero": ({"rank_pattern": {"q": 0}}, "^rank_pattern: 0 is not"),
    "a pattern's alpha of NaN": ({"alpha_pattern": {"q": float("nan")}}, "^alpha_pattern: nan"),
    "rslora on LoKr": ({"use_rslora": True}, "^use_rslora: is not a field of LOKR"),
    "dora on LoKr": ({"use_dora": True}, "^use_dora: is not a field of LOKR"),
    "a flag that is text": ({"use_dora": "no"}, "^use_dora: 'no' is not true or false"),
    "targets that are a number": ({"target_modules": 3}, "^target_modules: 3 is neither"),
    "targets that are no pattern": (
        {"target_modules": "("},
        r"^target_modules: '\(' is no pattern",
    ),
    "biases of another kind": ({"bias": "some"}, "^bias: 'some' is not one of"),
    "saved modules that are text": ({"modules_to_save": "head"}, "^modules_to_save: .* no list"),
    "excluded that are numbers": ({"exclude_modules": [3]}, "^exclude_modules: .* neither"),
}


@pytest.mark.parametrize(("config", "problem"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_field_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], problem: str
) -> None:
    """A wrong configuration gives a wrong scale, which nobody would notice."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), **config)

    with pytest.raises(AdapterConfigError, match=problem):
        read_adapter(folder, base_spec())


UNREADABLE = {
    "empty": (b"", "is not valid JSON: Expecting"),
    "cut off": (b'{"r": 3', "is not valid JSON: Expecting"),
    "a list": (b"[1]", "is no JSON object"),
    "another encoding": ('{"r": "é"}'.encode("latin-1"), "is not valid JSON: 'utf-8' codec"),
    "a number of 19 digits": (b'{"r": 1000000000000000000}', "holds a whole number of 19 digits"),
    "a field twice": (b'{"r": 3, "r": 4}', "gives 'r' twice"),
    "nested": (b'{"r": ' + b"[" * 10**5, "is nested too deeply"),
}


@pytest.mark.parametrize(("text", "problem"), UNREADABLE.values(), ids=UNREADABLE)
def test_configuration_that_cannot_be_read_is_refused_for_what_it_is(
    tmp_path: Path, text: bytes, problem: str
) -> None:
    """Who is told of broken JSON looks for a comma, and finds none that is missing."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q))
    (folder / "adapter_config.json").write_bytes(text)

    with pytest.raises(AdapterConfigError, match=rf"^adapter_config\.json: {problem}"):
        read_adapter(folder, base_spec())


def test_missing_config_is_refused_by_name(tmp_path: Path) -> None:
    """The scale of PEFT's tensors is in the configuration alone."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None))
    (folder / "adapter_config.json").unlink()

    with pytest.raises(AdapterConfigError, match=r"^adapter_config\.json: is missing"):
        read_adapter(folder, base_spec())


OTHER_LEAVES: dict[str, tuple[str, dict[str, Tensor]]] = {
    "alpha": ("LOKR", {f"{PEFT_Q}.alpha": torch.tensor(1.0)}),
    "dora_scale": ("LOKR", {f"{PEFT_Q}.dora_scale": torch.ones(8, 1)}),
    "lora": ("LOKR", lora(PEFT_V)),
    "lokr": ("LORA", {}),
}


@pytest.mark.parametrize(("peft_type", "others"), OTHER_LEAVES.values(), ids=OTHER_LEAVES)
def test_tensor_of_another_type_than_the_config_says_is_refused(
    tmp_path: Path, peft_type: str, others: dict[str, Tensor]
) -> None:
    """PEFT would drop such a tensor without a word."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None) | others, peft_type=peft_type)

    with pytest.raises(AdapterTensorError, match=f"no part of an adapter of peft_type {peft_type}"):
        read_adapter(folder, base_spec())


@pytest.mark.parametrize("use_dora", [False, True])
def test_dora_must_agree_with_the_tensors(tmp_path: Path, use_dora: bool) -> None:
    """A magnitude that is missing, or that is not wanted, means that the files do not belong."""
    tensors = lora(PEFT_Q)
    if not use_dora:
        tensors[f"{PEFT_Q}.lora_magnitude_vector"] = torch.ones(8)
    folder = write_peft(tmp_path, tensors, peft_type="LORA", use_dora=use_dora)

    with pytest.raises(AdapterConfigError, match=r"^use_dora: is .*block\.q_proj"):
        read_adapter(folder, base_spec())


def test_config_beside_a_file_given_by_its_own_name_is_used(tmp_path: Path) -> None:
    """PEFT's two names belong together, whichever of folder and file is given."""
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None))

    adapter = read_adapter(folder / "adapter_model.safetensors", base_spec())

    assert adapter.scales.tolist() == [2.0]
    assert adapter.ref.adapter_id == "adapter_model"


def test_flat_keys_may_come_with_a_config(tmp_path: Path) -> None:
    """The configuration decides the scale, however the modules are spelt."""
    folder = write_peft(tmp_path, low_rank(FLAT_Q, alpha=None))

    assert read_adapter(folder, base_spec()).info.format == "peft"


def diffusers_lora(folder: Path, fields: object, module: str = f"transformer.{Q}") -> Path:
    """Write a LoRA as diffusers does, with its configuration in the metadata."""
    return write(folder, lora(module), {"lora_adapter_metadata": json.dumps(fields)})


def pipeline_spec() -> ModelSpec:
    """Return the base as a component of a pipeline."""
    return discover({"transformer": Base()})


FIELDS = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}


def test_configuration_in_the_metadata_of_a_pipeline_is_that_of_its_component(
    tmp_path: Path,
) -> None:
    """Diffusers keeps there what PEFT keeps in a file of its own."""
    fields: dict[str, object] = {f"transformer.{name}": v for name, v in FIELDS.items()}
    fields["transformer.alpha_pattern"] = {"^block.q_proj": 12}
    path = diffusers_lora(tmp_path, fields | {"text_encoder.r": 9})

    adapter = read_adapter(path, pipeline_spec())

    assert adapter.scales.tolist() == [4.0]
    assert adapter.info.scales[0].source == "alpha/r of lora_adapter_metadata"
    assert adapter.info.format == "peft"
    assert adapter.warnings == ()


def test_configuration_in_the_metadata_of_a_model_is_for_all_of_it(tmp_path: Path) -> None:
    """A single model's file says nothing of components."""
    path = diffusers_lora(tmp_path, {**FIELDS, "use_rslora": True}, Q)

    scale = float(read_adapter(path, base_spec()).scales[0])

    assert scale == pytest.approx(6 / 3**0.5)


def test_component_without_a_configuration_needs_what_the_caller_knows(tmp_path: Path) -> None:
    """What another component was trained with does not count."""
    path = diffusers_lora(tmp_path, {"text_encoder.r": 3, "text_encoder.lora_alpha": 6})

    with pytest.raises(AdapterConfigError, match="is missing"):
        read_adapter(path, pipeline_spec())
    assert read_adapter(path, pipeline_spec(), alpha=3).scales.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "^lora_adapter_metadata: is not valid JSON"),
        ("[1]", "^lora_adapter_metadata: is no JSON object"),
        ('{"transformer.r": 0}', "^r: 0 is not"),
        ('{"r": 3, "use_qalora": true}', "^use_qalora: .* not served"),
    ],
)
def test_malformed_configuration_in_the_metadata_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    """It is no less a configuration for where it stands."""
    path = write(tmp_path, lora(f"transformer.{Q}"), {"lora_adapter_metadata": text})

    with pytest.raises(AdapterConfigError, match=problem):
        read_adapter(path, pipeline_spec())

"""Reports on files: what they hold, and everything that is wrong with them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lokr_core
from lokr_core.formats.inspect import AdapterReport, inspect_adapter
from lokr_core.spec import ModelSpec
from tests.core.inspect.files import SIZE, Toy, lokr, lora, write
from tests.tiny import (
    ModelFactory,
    lycoris_file,
    peft_loha,
    peft_lokr,
    peft_lora,
    tiny_llama,
)


@pytest.fixture
def spec() -> ModelSpec:
    """The modules of a toy that has one of each kind."""
    return lokr_core.attach(Toy()).spec


def report(path: Path, spec: ModelSpec | None = None) -> AdapterReport:
    """Return the report on a file."""
    return inspect_adapter(path, spec).report


def test_forms_and_scales_are_counted(tmp_path: Path) -> None:
    """One file may mix algorithms, forms, ranks and scales."""
    path = write(tmp_path / "a.safetensors", lokr("blocks.0"), lora("blocks.1"), lora("head", 3))
    contents = report(path).contents

    assert contents is not None
    assert contents.algorithms == {"lokr": 1, "lora": 2}
    assert {(form.algorithm, form.rank) for form in contents.forms} == {
        ("lokr", None),
        ("lora", 2),
        ("lora", 3),
    }
    assert {(scale.scale, scale.num_modules) for scale in contents.scales} == {(1.0, 1), (2.0, 2)}


def test_everything_beside_deltas_is_named(spec: ModelSpec, tmp_path: Path) -> None:
    """Biases, norms and replacements change a model as much as factors do."""
    others = {
        "blocks.0.diff_b": torch.ones(SIZE),
        "norm.w_norm": torch.ones(SIZE),
        "norm.b_norm": torch.ones(SIZE),
        "blocks.1.weight": torch.rand(SIZE, SIZE),
        "conv.dora_scale": torch.ones(SIZE, 1, 1, 1),
    }
    conv = {
        "conv.lora_up.weight": torch.ones(SIZE, 2, 1, 1),
        "conv.lora_down.weight": torch.ones(2, SIZE, 3, 3),
        "conv.alpha": torch.tensor(1.0),
    }
    for base in (spec, None):
        contents = report(write(tmp_path / "a.safetensors", others, conv), base).contents

        assert contents is not None
        assert contents.biases.first == ("blocks.0", "norm")
        assert contents.norms.first == ("norm",)
        assert contents.replacements.first == ("blocks.1",)
        assert contents.dora == {"output": 1}


def test_new_parameters_are_not_taken_for_the_base_s(tmp_path: Path) -> None:
    """Without the base nothing is known to equal it, not even the ones that a norm starts with."""
    found = report(write(tmp_path / "a.safetensors", {"norm.weight": torch.ones(SIZE)}))

    assert found.contents is not None
    assert found.contents.replacements.first == ("norm",)
    assert found.warnings == ()


def test_every_problem_is_listed(spec: ModelSpec, tmp_path: Path) -> None:
    """Who repairs a file wants to know of all that is wrong, not of the first thing."""
    bad: dict[str, Tensor] = {
        "blocks.1.lora_up.weight": torch.full((SIZE, 2), torch.nan),
        "blocks.1.lora_down.weight": torch.ones(2, SIZE),
        "blocks.1.alpha": torch.tensor(1.0),
        "embed.oft_blocks": torch.ones(2, 2, 2),
        "nowhere.lokr_w1": torch.ones(2, 2),
    }
    path = write(tmp_path / "a.safetensors", lokr("blocks.0", size=8), bad)
    found = report(path, spec)

    assert not found.is_served
    assert found.version is None
    assert found.num_problems == 4
    mismatch = next(problem for problem in found.problems if problem.found)
    assert (mismatch.module, mismatch.found, mismatch.expected) == (
        "blocks.0",
        (8, 8),
        (SIZE, SIZE),
    )
    assert {problem.tensor for problem in found.problems} == {
        None,
        "blocks.1.lora_up.weight",
        "embed.oft_blocks",
    }
    assert found.fit is not None
    assert found.fit.unmatched.first == ("nowhere.lokr_w1",)


def test_warnings_are_told_beside_problems(spec: ModelSpec, tmp_path: Path) -> None:
    """A doubtful scale may be what is really wrong."""
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "32"}
    bad = {"nowhere.lokr_w1": torch.ones(2, 2)}
    path = write(tmp_path / "a.safetensors", lokr("blocks.0"), bad, metadata=metadata)
    found = report(path, spec)

    assert found.num_problems == 1
    assert len(found.warnings) == 1
    assert "0.03125" in found.warnings[0]


def test_what_stays_unchanged_is_told_by_kind(spec: ModelSpec, tmp_path: Path) -> None:
    """A file that changes less than it should is the commonest silent fault."""
    found = report(write(tmp_path / "a.safetensors", lokr("blocks.1")), spec)

    assert found.is_served
    assert found.fit is not None
    assert found.fit.num_bound == 1
    assert {kind.kind: (kind.num_modules, kind.num_in_base) for kind in found.fit.unchanged} == {
        "linear": (1, 2),
        "embedding": (1, 1),
        "conv": (1, 1),
        "norm": (1, 1),
    }
    linear = next(kind for kind in found.fit.unchanged if kind.kind == "linear")
    assert linear.names == {"blocks.*": 1}


def test_problems_are_bounded_and_counted(spec: ModelSpec, tmp_path: Path) -> None:
    """A file for another base has thousands of them."""
    keys = {f"blocks.0.{n}.oft_blocks": torch.ones(1) for n in range(120)}
    found = report(write(tmp_path / "a.safetensors", keys), spec)

    assert found.num_problems == 120
    assert len(found.problems) == 50


def test_a_file_of_another_algorithm_is_given_up(spec: ModelSpec, tmp_path: Path) -> None:
    """Binding it again without each of its tensors would take as many rounds."""
    keys = {f"blocks.0.{n}.oft_blocks": torch.ones(1) for n in range(300)}
    found = report(write(tmp_path / "a.safetensors", keys), spec)

    assert found.num_problems == 201


def test_a_module_that_cannot_be_routed_is_named(tmp_path: Path) -> None:
    """Its owner uses its weight without calling it."""
    spec = lokr_core.attach(nn.ModuleDict({"attention": nn.MultiheadAttention(SIZE, 2)})).spec
    found = report(write(tmp_path / "a.safetensors", lokr("attention.out_proj")), spec)

    assert [problem.module for problem in found.problems] == ["attention.out_proj"]


def test_a_missing_configuration_is_one_problem(tmp_path: Path) -> None:
    """All modules lack it alike."""
    tensors = {
        key.replace("lora_up", "lora_B").replace("lora_down", "lora_A"): tensor
        for module in ("a", "b")
        for key, tensor in lora(f"base_model.model.{module}").items()
        if "alpha" not in key
    }
    found = report(write(tmp_path / "a.safetensors", tensors))

    assert [problem.num_alike for problem in found.problems] == [2]
    assert "adapter_config.json" in found.problems[0].message


def test_a_broken_configuration_does_not_hide_the_rest(tmp_path: Path) -> None:
    """The tensors are told of all the same."""
    peft_lokr(tiny_llama, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "r": -1}))
    found = report(tmp_path / "a")

    assert [problem.message for problem in found.problems] == [
        "r: -1 is not a positive whole number"
    ]
    assert found.contents is not None
    assert found.contents.algorithms == {"lokr": 14}
    assert found.contents.scales == ()  # none is known


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_file_that_cannot_be_read_is_a_problem_too(name: str, tmp_path: Path) -> None:
    """Other files of the same command line are still reported on."""
    (tmp_path / name).write_bytes(b"nothing of use")
    found = report(tmp_path / name)

    assert (found.file, found.num_problems) == (None, 1)
    assert name in found.problems[0].message


def test_a_folder_without_a_file_is_told_as_such(tmp_path: Path) -> None:
    """Rather than that a file is missing which it need not have."""
    (tmp_path / "empty").mkdir()

    assert (
        "is a folder without a .safetensors file" in report(tmp_path / "empty").problems[0].message
    )


def test_a_name_that_is_no_id_is_a_problem(tmp_path: Path) -> None:
    """The server would not register it."""
    found = report(write(tmp_path / "näme.safetensors", lokr("a")))

    assert "no adapter id" in found.problems[0].message


def test_metadata_that_matters_is_told(tmp_path: Path) -> None:
    """How a file was trained decides how it is read; captions and hashes do not."""
    metadata = {
        "ss_network_module": "lycoris.kohya",
        "ss_tag_frequency": "{}",
        "lycoris_config": json.dumps({"algo": "lokr", "linear_dim": 8, "preset": "x"}),
    }
    found = report(write(tmp_path / "a.safetensors", lokr("a"), metadata=metadata))

    assert found.file is not None
    assert found.file.trainer == {
        "ss_network_module": "lycoris.kohya",
        "lycoris_config.algo": "lokr",
        "lycoris_config.linear_dim": "8",
    }


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_metadata_that_is_malformed_tells_nothing(text: str, tmp_path: Path) -> None:
    """Nobody has to write it well."""
    path = write(tmp_path / "a.safetensors", lokr("a"), metadata={"lycoris_config": text})
    found = report(path)

    assert found.is_served
    assert found.file is not None
    assert found.file.trainer == {}


MAKERS: dict[str, Callable[[ModelFactory, Path], Path]] = {
    "peft lokr": partial(peft_lokr, decompose_both=True, r=2),
    "peft loha": peft_loha,
    "peft dora": partial(peft_lora, use_dora=True),
}


@pytest.mark.parametrize("name", [*MAKERS, "lycoris dora"])
def test_a_file_tells_the_same_without_its_base(name: str, tmp_path: Path) -> None:
    """Sizes, ranks and scales follow from the tensors alone."""
    if name in MAKERS:
        path = MAKERS[name](tiny_llama, tmp_path / "a")
    else:
        path = lycoris_file(tiny_llama, tmp_path / "a.safetensors", dora_wd=True).path
    alone = inspect_adapter(path)
    bound = inspect_adapter(path, lokr_core.attach(tiny_llama()).spec)

    assert alone.report.is_served
    assert alone.report.version == bound.report.version
    assert alone.adapter is None
    assert bound.adapter is not None
    assert alone.report.contents is not None
    assert bound.report.contents is not None
    assert alone.report.contents.forms == bound.report.contents.forms
    assert alone.report.contents.scales == bound.report.contents.scales
    assert alone.report.contents.dora == bound.report.contents.dora

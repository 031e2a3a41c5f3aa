"""``inspect``, on files of real trainers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.serve.cli.conftest import Run
from tests.tiny import peft_lora, tiny_llama


def test_a_file_tells_what_it_holds_without_a_model(run: Run, adapter_folder: Path) -> None:
    """Who was handed a file wants to know what it is."""
    outcome = run(
        "inspect", str(adapter_folder / "poet"), str(adapter_folder / "lyco.safetensors"), "--json"
    )
    found = json.loads(outcome.out)
    poet, lyco = found["adapters"]

    assert outcome.code == 0
    assert found["is_served"]
    assert found["mix"] is None
    assert (poet["contents"]["format"], poet["contents"]["algorithms"]) == ("peft", {"lokr": 14})
    assert (lyco["contents"]["format"], lyco["adapter_id"]) == ("lycoris", "lyco")
    assert len(lyco["file"]["digest"]) == 64
    assert poet["file"]["num_parameters"] * 4 == poet["file"]["num_bytes"]
    assert poet["fit"] is None


def test_with_a_model_the_mix_and_its_cost_are_told(
    run: Run, adapter_folder: Path, model_folder: Path
) -> None:
    """Who plans a mix wants to know what it costs, and whether it can be merged."""
    outcome = run(
        "inspect",
        *(f"{adapter_folder / 'poet'}*0.5", str(adapter_folder / "plain")),
        *("--model", str(model_folder), "--dtype", "bfloat16", "--json"),
    )
    found = json.loads(outcome.out)

    assert [list(a["contents"]["algorithms"]) for a in found["adapters"]] == [["lokr"], ["lora"]]
    assert found["mix"]["name"] == "plain+poet*0.5"
    assert found["mix"]["base_macs"] > 0
    assert 0 < found["mix"]["rounding_loss"] < 0.1


def test_people_get_a_page(run: Run, adapter_folder: Path, model_folder: Path) -> None:
    """The same facts in aligned lines, without blanks at their ends."""
    outcome = run("inspect", f"{adapter_folder / 'poet'}*1", "--model", str(model_folder))
    lines = outcome.out.splitlines()

    assert outcome.code == 0
    assert lines[0] == "poet"
    assert lines[1] == " served     yes"
    assert " unchanged  1 of 15 linear: lm_head" in lines
    assert "      14   0.75  alpha/r of adapter_config.json" in lines
    assert any(line.startswith(" rounding  merging loses") for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_one_adapter_without_a_weight_needs_no_weights_of_the_base(
    run: Run, adapter_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    """What binds is told at once, also of a model that would not fit into memory."""
    shutil.copy(model_folder / "config.json", tmp_path)
    outcome = run("inspect", str(adapter_folder / "poet"), "--model", str(tmp_path), "--json")
    found = json.loads(outcome.out)

    assert found["adapters"][0]["fit"]["num_bound"] == 14
    assert found["mix"]["merge_macs"] > 0
    assert found["mix"]["rounding_loss"] is None


def test_all_problems_are_listed(
    run: Run, adapter_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Keys without a module and sizes of another base, each with what was expected."""
    tensors = load_file(adapter_folder / "lyco.safetensors")
    key = "lycoris_model_layers_0_mlp_up_proj.lokr_w1"
    tensors |= {key: torch.ones(3, 3), "lycoris_other.lokr_w1": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "bad.safetensors")
    outcome = run("inspect", str(tmp_path / "bad.safetensors"), "--model", str(model_folder))

    assert outcome.code == 1
    assert " served     no: 2 problems" in outcome.out
    assert " unmatched  1: lycoris_other.lokr_w1" in outcome.out
    assert "module 'model.layers.0.mlp.up_proj': the adapter's delta is" in outcome.out


def test_hidden_and_alike_problems_are_counted(run: Run, tmp_path: Path) -> None:
    """A page that cannot show all says how many there are."""
    save_file({f"a{n}.oft_blocks": torch.ones(1) for n in range(60)}, tmp_path / "many.safetensors")
    peft_lora(tiny_llama, tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").unlink()
    outcome = run(
        "inspect",
        str(tmp_path / "many.safetensors"),
        str(tmp_path / "lora" / "adapter_model.safetensors"),
    )

    assert "and 10 more" in outcome.out
    assert "(and 13 more alike)" in outcome.out


def test_adapters_that_replace_one_module_are_no_mix(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    """Each is served alone; together there is no telling which of them is meant."""
    for name in ("one", "two"):
        head = {"lm_head.weight": torch.rand(320, 64)}
        save_file(head, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    outcome = run("inspect", *paths, "--model", str(model_folder))

    assert outcome.code == 1
    assert "mix one+two\n served  no: " in outcome.out


def test_one_adapter_twice_is_a_fault_of_the_command_line(
    run: Run, adapter_folder: Path, model_folder: Path
) -> None:
    """A mix names each of its adapters once."""
    poet = str(adapter_folder / "poet")
    outcome = run("inspect", poet, poet, "--model", str(model_folder))

    assert outcome.code == 2
    assert "twice" in outcome.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_file_that_cannot_be_read_is_a_problem(run: Run, tmp_path: Path, as_json: bool) -> None:
    """The message names the file, in the page as in JSON."""
    (tmp_path / "x.safetensors").write_bytes(b"nothing of use")
    outcome = run("inspect", str(tmp_path / "x.safetensors"), *(["--json"] if as_json else []))

    assert outcome.code == 1
    assert "x.safetensors: " in outcome.out
    assert not outcome.err


def test_a_long_problem_stays_in_its_column(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a narrow terminal a message is read beside its name, in whole words."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    save_file({"lycoris_other.lokr_w1": torch.ones(2, 2)}, tmp_path / "bad.safetensors")
    outcome = run("inspect", str(tmp_path / "bad.safetensors"), "--model", str(model_folder))
    lines = outcome.out.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(" problem  "))

    assert all(len(line) <= 80 for line in lines[begin:])
    assert lines[begin].startswith(" problem  1 tensors match no module of the base model:")
    assert lines[begin + 1].startswith(" " * 10)

"""``inspect``, on files of real trainers."""

import json
from pathlib import Path

import pytest

from tests.serve.cli.conftest import Run


def test_a_file_tells_what_it_holds_without_a_model(run: Run, adapter_folder: Path) -> None:
    """Who was handed a file wants to know what it is."""
    outcome = run(
        "inspect", str(adapter_folder / "poet"), str(adapter_folder / "lyco.safetensors"), "--json"
    )
    poet, lyco = json.loads(outcome.out)["adapters"]

    assert (poet["format"], poet["algorithms"]) == ("peft", ["lokr"])
    assert (lyco["format"], lyco["algorithms"]) == ("lycoris", ["lokr"])
    assert len(lyco["digest"]) == 64
    assert poet["num_tensors"] > 0
    assert poet["num_parameters"] * 4 == poet["num_bytes"]


def test_with_a_model_the_mix_and_its_cost_are_told(
    run: Run, adapter_folder: Path, model_folder: Path
) -> None:
    """Who plans a mix wants to know what it costs, and whether it can be merged."""
    outcome = run(
        "inspect",
        *(f"{adapter_folder / 'poet'}*0.5", str(adapter_folder / "plain")),
        *("--model", str(model_folder), "--json"),
    )
    report = json.loads(outcome.out)

    assert [adapter["algorithms"] for adapter in report["adapters"]] == [["lokr"], ["lora"]]
    assert report["adapters"][0]["scales"][0]["num_modules"] == report["adapters"][0]["num_modules"]
    assert report["mix"]["name"] == "plain+poet*0.5"
    assert report["mix"]["base_macs"] > 0
    assert 0 <= report["mix"]["rounding_loss"] < 0.01


@pytest.mark.parametrize("with_model", [False, True])
def test_people_get_lines(
    run: Run, adapter_folder: Path, model_folder: Path, with_model: bool
) -> None:
    """The same facts, one to a line."""
    model = ("--model", str(model_folder)) if with_model else ()
    outcome = run("inspect", str(adapter_folder / "poet"), *model)

    assert outcome.code == 0
    assert "algorithms" in outcome.out
    assert ("unmerged_macs" in outcome.out) == with_model


def test_a_file_that_cannot_be_read_is_one_line_of_error(run: Run, tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "x.safetensors").write_bytes(b"nothing of use")
    outcome = run("inspect", str(tmp_path / "x.safetensors"))

    assert outcome.code == 1
    assert "x.safetensors" in outcome.err
    assert len(outcome.err.splitlines()) == 1

"""``convert``, there and back."""

import json
from pathlib import Path

from safetensors.torch import load_file

from tests.serve.cli.conftest import Run


def test_an_adapter_goes_there_and_back(
    run: Run, adapter_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Each layout is read again, and gives the same factors."""
    lyco, one = adapter_folder / "lyco.safetensors", tmp_path / "one.safetensors"
    first = run("convert", str(lyco), str(one), "--model", str(model_folder), "--json")
    run("convert", str(one), str(tmp_path / "peft"), "--to", "peft")
    last = run(
        "convert", str(tmp_path / "peft"), str(tmp_path / "b.safetensors"), "--to", "lycoris"
    )

    assert json.loads(first.out)["layout"] == "canonical"
    assert "num_modules     14" in last.out
    before, after = load_file(lyco), load_file(tmp_path / "b.safetensors")
    assert before.keys() == after.keys()
    assert all(
        after[key].equal(tensor) for key, tensor in before.items() if not key.endswith("alpha")
    )


def test_an_override_is_written_into_the_file(
    run: Run, adapter_folder: Path, tmp_path: Path
) -> None:
    """A file whose scale is wrong can be put right for all programs."""
    out = tmp_path / "plain.safetensors"
    run("convert", str(adapter_folder / "plain"), str(out), "--scale-override", "0.5")
    tensors = load_file(out)
    path = "model.layers.0.mlp.up_proj"

    assert tensors[f"{path}.alpha"] / len(tensors[f"{path}.lora_down.weight"]) == 0.5


def test_what_cannot_be_exact_is_one_line_of_error(
    run: Run, adapter_folder: Path, tmp_path: Path
) -> None:
    """The module and the reason are named; nothing is written."""
    outcome = run(
        "convert", str(adapter_folder / "lyco.safetensors"), str(tmp_path / "out.safetensors")
    )

    assert outcome.code == 1
    assert "give the base model" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_name_that_tells_no_file_is_refused(
    run: Run, adapter_folder: Path, tmp_path: Path
) -> None:
    """Only PEFT's layout is a folder; the server knows files by their suffix."""
    outcome = run("convert", str(adapter_folder / "poet"), str(tmp_path / "out"))

    assert outcome.code == 1
    assert "canonical layout must have a name that ends in .safetensors" in outcome.err

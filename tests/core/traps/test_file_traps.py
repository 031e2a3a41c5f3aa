"""Traps in files as files: broken, dangerous, or incomplete while they look complete."""

import pickle
from pathlib import Path

import pytest
import torch

from lokr_core.errors import AdapterFileError, AdapterTensorError
from lokr_core.formats import read_adapter
from tests.core.formats.hand_made import FLAT_Q, FLAT_V, base_spec, full, low_rank, write


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("leaf", ["lokr_w1", "lokr_w2_a", "lokr_w2_b"])
def test_trap_27_values_that_are_not_finite_are_found(
    tmp_path: Path, leaf: str, value: float
) -> None:
    """Diverged runs save such files, and one such row would spoil every row of its batch."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.{leaf}"][1, 1] = value

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.{leaf}' holds NaN or infinite"):
        read_adapter(write(tmp_path, tensors), base_spec())


@pytest.mark.parametrize("missing", [1, 100, 400])
def test_trap_27_truncated_files_are_found(tmp_path: Path, missing: int) -> None:
    """A download that broke off is met in the wild too."""
    path = write(tmp_path, low_rank(FLAT_Q))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - missing])

    with pytest.raises(AdapterFileError, match=r"adapter\.safetensors"):
        read_adapter(path, base_spec())


class _Trigger:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Say what to call on unpickling."""
        return Path.touch, (self._mark,)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["adapter.pt", "adapter.bin", "adapter.ckpt"])
def test_trap_28_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    """To unpickle is to run what the file's author wants."""
    mark = tmp_path / "was-run"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(_Trigger(mark)))

    with pytest.raises(AdapterFileError, match=r"(?i)pickle"):
        read_adapter(path, base_spec())

    assert not mark.exists()


def test_trap_28_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    """The suffix is no proof of what is inside."""
    mark = tmp_path / "was-run"
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps(_Trigger(mark)))

    with pytest.raises(AdapterFileError):
        read_adapter(path, base_spec())

    assert not mark.exists()


def test_trap_28_peft_folder_of_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    """PEFT's older folders hold adapter_model.bin, which cannot be read safely."""
    torch.save(full("base_model.model.block.q_proj", alpha=None), tmp_path / "adapter_model.bin")
    config = '{"peft_type": "LOKR", "r": 3, "alpha": 6}'
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")

    with pytest.raises(AdapterFileError, match=r"adapter_model\.bin.*(?i:pickle)"):
        read_adapter(tmp_path, base_spec())


def test_trap_31_t_lora_is_refused_by_name(tmp_path: Path) -> None:
    """Such a file looks complete, but lacks the decomposition of the base that it builds on."""
    tensors = {f"{FLAT_Q}.q_layer.weight": torch.ones(2, 12), **low_rank(FLAT_V)}

    with pytest.raises(AdapterTensorError, match=r"algorithm other than LoKr|T-LoRA"):
        read_adapter(write(tmp_path, tensors), base_spec())

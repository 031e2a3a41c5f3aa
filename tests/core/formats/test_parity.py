"""What is read is what the trainers themselves apply, for every algorithm and form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lokr_core.adapter import Adapter
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.tiny import (
    GPT2_TARGETS,
    ModelFactory,
    conv1d_lokr_file,
    conv1d_lokr_merged,
    lycoris_file,
    lycoris_merged,
    peft_loha,
    peft_lokr,
    peft_lora,
    peft_merged,
    tiny_gpt2,
    tiny_llama,
)

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}  # of the delta's norm
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])


def assert_same_change(
    adapter: Adapter, make_model: ModelFactory, merged: nn.Module, dtype: torch.dtype
) -> None:
    """Check that an adapter changes the parameters that a trainer changes, and as much."""
    base = dict(nn.Module.to(make_model(), dtype).named_parameters(remove_duplicate=False))
    theirs = dict(merged.named_parameters(remove_duplicate=False))
    wanted = {n: (theirs[n] - p).detach() for n, p in base.items() if not torch.equal(theirs[n], p)}
    ours = adapter.delta_weights()

    assert set(ours) == set(wanted)
    for name, delta in wanted.items():
        assert ours[name].dtype == dtype
        assert (ours[name] - delta).norm() <= TOLERANCES[dtype] * delta.norm(), name


PEFT_CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lokr": (peft_lokr, {}),
    "lokr of two full factors": (peft_lokr, {"r": 32, "alpha": 7}),
    "lokr of two low-rank factors": (
        peft_lokr,
        {"r": 2, "decompose_both": True, "decompose_factor": 8},
    ),
    "lokr whose w1 is the larger factor": (peft_lokr, {"decompose_factor": 32}),
    "lokr with patterns": (
        peft_lokr,
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*\.(o|k)_proj": 3},
            "alpha_pattern": {"layers.0.*.k_proj": 9, "v_proj": 1},
        },
    ),
    "loha": (peft_loha, {}),
    "loha too large for Khatri-Rao": (peft_loha, {"r": 16}),
    "lora": (peft_lora, {}),
    "lora in half precision": (peft_lora, {"dtype": torch.bfloat16}),
    "rslora": (peft_lora, {"use_rslora": True, "lora_alpha": 3}),
    "dora": (peft_lora, {"use_dora": True}),
    "lora with patterns": (
        peft_lora,
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 1}},
    ),
}


@DTYPES
@pytest.mark.parametrize(("make", "config"), PEFT_CASES.values(), ids=PEFT_CASES)
def test_peft_folder_gives_what_peft_merges(
    tmp_path: Path, make: Any, config: dict[str, Any], dtype: torch.dtype
) -> None:
    """A PEFT adapter must do here what it did for its trainer, scale and patterns included."""
    folder = make(tiny_llama, tmp_path / "adapter", **config)

    adapter = read_adapter(folder, discover(tiny_llama(dtype)))

    assert adapter.warnings == ()
    assert_same_change(adapter, tiny_llama, peft_merged(tiny_llama, folder, dtype), dtype)


LYCORIS_CASES: dict[str, dict[str, Any]] = {
    "lokr": {},
    "lokr of two full factors": {"full_matrix": True, "alpha": 64.0},
    "lokr of two low-rank factors": {"decompose_both": True, "dim": 2, "factor": 8},
    "lokr unbalanced": {"unbalanced_factorization": True},
    "lokr in float16": {"dtype": torch.float16},
    "lokr in bfloat16": {"dtype": torch.bfloat16},
    "lokr with dora by output": {"dora_wd": True},
    "lokr with dora by input": {"dora_wd": True, "wd_on_output": False},
    "loha": {"algo": "loha"},
    "loha in float16": {"algo": "loha", "dtype": torch.float16},
    "loha too large for Khatri-Rao": {"algo": "loha", "dim": 16},
    "loha with dora": {"algo": "loha", "dora_wd": True},
    "locon": {"algo": "locon"},
    "locon with dora by input": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
}


@DTYPES
@pytest.mark.parametrize("options", LYCORIS_CASES.values(), ids=LYCORIS_CASES)
def test_lycoris_file_gives_what_its_forward_applies(
    tmp_path: Path, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """A LyCORIS file must do here what its forward did in training."""
    made = lycoris_file(tiny_llama, tmp_path / "a.safetensors", **options)

    adapter = read_adapter(made.path, discover(tiny_llama(dtype)))

    assert adapter.warnings == ()
    assert_same_change(adapter, tiny_llama, lycoris_merged(tiny_llama, made, dtype), dtype)


@DTYPES
@pytest.mark.parametrize("use_dora", [False, True])
def test_lora_on_conv1d_gives_what_peft_merges(
    tmp_path: Path, use_dora: bool, dtype: torch.dtype
) -> None:
    """GPT-2 keeps its weights transposed; the delta must come out in the base's layout."""
    folder = peft_lora(
        tiny_gpt2,
        tmp_path / "adapter",
        target_modules=GPT2_TARGETS,
        fan_in_fan_out=True,
        use_dora=use_dora,
    )

    adapter = read_adapter(folder, discover(tiny_gpt2(dtype)))

    assert_same_change(adapter, tiny_gpt2, peft_merged(tiny_gpt2, folder, dtype), dtype)


@DTYPES
@pytest.mark.parametrize("rank", [4, None])
def test_lokr_on_conv1d_gives_the_kronecker_product(
    tmp_path: Path, rank: int | None, dtype: torch.dtype
) -> None:
    """No trainer takes Conv1D, but a LyCORIS file over it has one meaning only."""
    path = conv1d_lokr_file(tiny_gpt2, tmp_path / "a.safetensors", rank=rank)

    adapter = read_adapter(path, discover(tiny_gpt2(dtype)))

    assert_same_change(adapter, tiny_gpt2, conv1d_lokr_merged(tiny_gpt2, path, dtype), dtype)


def test_info_says_what_is_in_the_file(tmp_path: Path) -> None:
    """Operators tell adapters apart by format, algorithms, size and where the scale came from."""
    made = lycoris_file(tiny_llama, tmp_path / "a.safetensors", dora_wd=True)

    info = read_adapter(made.path, discover(tiny_llama())).info

    assert info.format == "lycoris"
    assert info.algorithms == ("dora", "lokr")
    assert {scale.source: scale.num_modules for scale in info.scales} == {
        "1: both factors are full": 8,
        "alpha/rank of the file": 6,
    }
    assert info.num_parameters == 2656

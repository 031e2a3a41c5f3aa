"""Reports on files whose tensors have sizes that no module has; nothing of it is raised."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lokr_core.formats.inspect import inspect_adapter
from tests.core.inspect.files import lokr, write


def _small_factors() -> dict[str, Tensor]:
    """Return 1 MB of factors of a weight [2**32, 2**32]."""
    sides = {"a": (1 << 16, 1), "b": (1, 1 << 16)}
    return {
        f"big.lokr_w{n}_{side}": torch.ones(shape) for n in (1, 2) for side, shape in sides.items()
    }


def _empty_factors() -> dict[str, Tensor]:
    """Return a table of no rank and as many tokens as there are bytes in a terabyte."""
    return {
        "big.lora_embedding_A": torch.ones(0, 1 << 40),
        "big.lora_embedding_B": torch.ones(1 << 40, 0),
    }


@pytest.mark.parametrize("tensors", [_small_factors(), _empty_factors()], ids=["small", "empty"])
def test_a_weight_larger_than_any_is_a_problem(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """A small file can stand for more elements than can be counted."""
    found = inspect_adapter(write(tmp_path / "a.safetensors", tensors)).report

    assert [problem.module for problem in found.problems] == ["big"]
    assert found.file is not None
    assert found.file.num_tensors == len(tensors)


def test_an_empty_kernel_is_a_problem(tmp_path: Path) -> None:
    """It would be divided by, to tell the inputs of the module."""
    sides = {"a": (4, 2), "b": (2, 4, 0)}
    factors = {
        f"conv.hada_w{n}_{side}": torch.ones(shape) for n in (1, 2) for side, shape in sides.items()
    }
    alpha = {"conv.alpha": torch.tensor(1.0)}
    found = inspect_adapter(write(tmp_path / "a.safetensors", factors, alpha)).report

    assert [problem.tensor for problem in found.problems] == ["conv.hada_w1_b"]


def test_projections_that_are_no_parts_of_each_other_are_no_problem(tmp_path: Path) -> None:
    """A fused projection beside one of its parts, as large as itself, is not to be cut by it."""
    path = write(tmp_path / "a.safetensors", lokr("attn.to_kv"), lokr("attn.to_k"))
    found = inspect_adapter(path).report

    assert found.is_served
    assert found.contents is not None
    assert found.contents.num_modules == 2

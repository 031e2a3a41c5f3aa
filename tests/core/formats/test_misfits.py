"""Factors that do not fit the layer that they name are refused, whatever they multiply out to."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lokr_core.errors import AdapterMismatchError, AdapterTensorError, UnsupportedModuleError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.conv_base import IN, OUT, Base, conv_base, delta_of, lokr_of
from tests.core.formats.hand_made import draw, write_peft

MISFITS: dict[str, tuple[dict[str, Tensor], str]] = {
    "another kernel": (lokr_of(draw(4, 4, 2, 3)), r"kernel is \(3, 2\)"),
    "kernel in w1": ({"lokr_w1": draw(2, 3, 3, 2), "lokr_w2": draw(4, 4)}, "no kernel belongs"),
    "kernel in both": (
        {"lokr_w1": draw(2, 9), "lokr_w2": draw(4, 8)},
        r"lokr_w2' is \(4, 8\), which does not hold the kernel \(3, 2\)",
    ),
    "kernel in both, low rank": (
        {"lokr_w1": draw(2, 9), "lokr_w2_a": draw(4, 2), "lokr_w2_b": draw(2, 8)},
        r"lokr_w2_b' is \(2, 8\), which does not hold the kernel \(3, 2\)",
    ),
    "core of another kernel": (
        {
            "lokr_w1": draw(2, 3),
            "lokr_t2": draw(2, 2, 2, 2),
            "lokr_w2_a": draw(2, 4),
            "lokr_w2_b": draw(2, 4),
        },
        r"kernel is \(3, 2\)",
    ),
    "core of another rank": (
        {
            "lokr_w1": draw(2, 3),
            "lokr_t2": draw(2, 2, 3, 2),
            "lokr_w2_a": draw(3, 4),
            "lokr_w2_b": draw(2, 4),
        },
        r"lokr_w2_a' is \(3, 4\), but its core has rank 2",
    ),
    "core without sides": ({"lokr_w1": draw(2, 3), "lokr_t2": draw(2, 2, 3, 2)}, "no partner"),
    "core in one half": (
        {
            "hada_t1": draw(2, 2, 3, 2),
            **{f"hada_w{half}_a": draw(2, OUT) for half in (1, 2)},
            **{f"hada_w{half}_b": draw(2, IN) for half in (1, 2)},
        },
        "has no partner 'hada_t2'",
    ),
}


@pytest.mark.parametrize(("tensors", "problem"), MISFITS.values(), ids=MISFITS)
def test_factors_that_do_not_fit_the_kernel_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], problem: str
) -> None:
    """Sizes that multiply out by chance would give a scrambled kernel."""
    with pytest.raises(AdapterTensorError, match=problem):
        delta_of(tmp_path, conv_base(3, 2), tensors)


def test_factors_of_another_base_are_refused_before_they_are_multiplied(tmp_path: Path) -> None:
    """A small file must not make the reader take memory for a large product."""
    rank = 64  # its Khatri-Rao products have 64 times the file's numbers
    size = 6000
    tensors = {
        "hada_w1_a": torch.ones(size, rank),
        "hada_w1_b": torch.ones(rank, size),
        "hada_w2_a": torch.ones(size, rank),
        "hada_w2_b": torch.ones(rank, size),
    }

    with pytest.raises(AdapterMismatchError):
        delta_of(tmp_path, conv_base(1, 1), tensors)


def peft_lora(folder: Path, base: Base, num_in: int) -> None:
    """Read a LoRA of PEFT over a convolution."""
    kernel = base.weight.shape[2:]
    tensors = {
        "conv.lora_A.weight": draw(2, num_in, *kernel),
        "conv.lora_B.weight": draw(OUT, 2, *[1] * len(kernel)),
    }
    read_adapter(write_peft(folder, tensors, peft_type="LORA", r=2), discover(base))


def test_lora_of_peft_on_grouped_or_dilated_convolutions_is_refused(tmp_path: Path) -> None:
    """What it trains there is no change of the weight; LyCORIS's is, and is served."""
    with pytest.raises(UnsupportedModuleError, match="reads every channel"):
        peft_lora(tmp_path, conv_base(3, 3, groups=2), IN)
    with pytest.raises(UnsupportedModuleError, match="without the convolution's dilation"):
        peft_lora(tmp_path, conv_base(3, 3, dilation=2), IN)
    peft_lora(tmp_path, conv_base(1, 1, dilation=2), IN)

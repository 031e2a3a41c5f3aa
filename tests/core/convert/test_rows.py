"""Outputs of fused modules, chosen in the tensors of the file."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lokr_core.formats.binding import Target
from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.rows import placed
from lokr_core.spec import ModuleKind, ModuleSpec
from lokr_core.weights import Rows

NUM_OUT, NUM_IN = 12, 6
Leaves = dict[str, Tensor]


def drawn(**shapes: tuple[int, ...]) -> Leaves:
    """Return random leaves of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        leaf: torch.randn(shape, generator=generator, dtype=torch.float64)
        for leaf, shape in shapes.items()
    }


def lokr(leaves: Leaves) -> Tensor:
    """Return the delta of a LoKr, [O, I]."""
    w1 = leaves["lokr_w1"] if "lokr_w1" in leaves else leaves["lokr_w1_a"] @ leaves["lokr_w1_b"]
    if "lokr_w2" in leaves:
        w2 = leaves["lokr_w2"]
    elif "lokr_t2" in leaves:
        parts = (leaves["lokr_t2"], leaves["lokr_w2_a"], leaves["lokr_w2_b"])
        w2 = torch.einsum("ijk,ip,jr->prk", *parts).flatten(1)
    else:
        w2 = leaves["lokr_w2_a"] @ leaves["lokr_w2_b"]
    return torch.kron(w1, w2.contiguous())


def loha(leaves: Leaves) -> Tensor:
    """Return the delta of a LoHa, [O, I]."""
    if "hada_t1" not in leaves:
        left, right = (leaves[f"hada_w{i}_a"] @ leaves[f"hada_w{i}_b"] for i in (1, 2))
        return left * right
    left, right = (
        torch.einsum(
            "ijk,ip,jr->prk", leaves[f"hada_t{i}"], leaves[f"hada_w{i}_a"], leaves[f"hada_w{i}_b"]
        ).flatten(1)
        for i in (1, 2)
    )
    return left * right


def lora(leaves: Leaves) -> Tensor:
    """Return the delta of a LoRA, [O, I]."""
    return leaves["lora_up"] @ leaves["lora_down"]


CASES: dict[str, tuple[Callable[[Leaves], Tensor], Leaves]] = {
    "whole blocks of w1": (lokr, drawn(lokr_w1=(6, 2), lokr_w2_a=(2, 2), lokr_w2_b=(2, 3))),
    "whole blocks of a low-rank w1": (
        lokr,
        drawn(lokr_w1_a=(6, 1), lokr_w1_b=(1, 2), lokr_w2=(2, 3)),
    ),
    "one row of w1": (lokr, drawn(lokr_w1=(1, 2), lokr_w2=(12, 3))),
    "one row of w1 above a product": (
        lokr,
        drawn(lokr_w1=(1, 2), lokr_w2_a=(12, 2), lokr_w2_b=(2, 3)),
    ),
    "one row of w1 above a core": (
        lokr,
        drawn(lokr_w1=(1, 1), lokr_t2=(2, 2, 3), lokr_w2_a=(2, 12), lokr_w2_b=(2, 2)),
    ),
    "whole blocks above a core": (
        lokr,
        drawn(lokr_w1=(6, 1), lokr_t2=(2, 2, 3), lokr_w2_a=(2, 2), lokr_w2_b=(2, 2)),
    ),
    "loha": (
        loha,
        drawn(hada_w1_a=(12, 2), hada_w1_b=(2, 6), hada_w2_a=(12, 2), hada_w2_b=(2, 6)),
    ),
    "loha with cores": (
        loha,
        drawn(
            hada_t1=(2, 2, 3),
            hada_w1_a=(2, 12),
            hada_w1_b=(2, 2),
            hada_t2=(2, 2, 3),
            hada_w2_a=(2, 12),
            hada_w2_b=(2, 2),
        ),
    ),
    "lora": (lora, drawn(lora_up=(12, 2), lora_down=(2, 6))),
    "difference": (lambda leaves: leaves["diff"], drawn(diff=(12, 6))),
    "magnitude by output": (lambda leaves: leaves["dora_scale"], drawn(dora_scale=(12, 1))),
}


def targets(size: int, *pieces: tuple[int, int]) -> list[Target]:
    """Return targets in one module: for each, where its outputs begin in the file, and in it.

    Args:
        size: Outputs of each.
        pieces: Those two numbers.
    """
    module = nn.Linear(NUM_IN, size * len(pieces))
    spec = ModuleSpec(path="m", kind=ModuleKind.LINEAR, module=module)
    return [
        Target(spec=spec, rows=Rows(start=start, stop=start + size), at=at) for start, at in pieces
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_third_of_a_fused_module_is_its_rows(name: str) -> None:
    """One of q, k and v, which are one module in the file."""
    dense, leaves = CASES[name]
    chosen = dict(placed(leaves, targets(4, (4, 0))))

    torch.testing.assert_close(dense(chosen), dense(leaves)[4:8], rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_swapped_halves_are_its_rows_in_another_order(name: str) -> None:
    """Shift and scale of an adaptive norm change places between two code bases."""
    dense, leaves = CASES[name]
    chosen = dict(placed(leaves, targets(6, (0, 6), (6, 0))))

    torch.testing.assert_close(dense(chosen), dense(leaves).roll(6, 0), rtol=0, atol=0)


def test_what_has_no_outputs_stays() -> None:
    """A magnitude by input belongs to all outputs alike."""
    leaves = drawn(lora_up=(12, 2), lora_down=(2, 6), dora_scale=(1, 6))

    assert placed(leaves, targets(4, (0, 0)))["dora_scale"] is leaves["dora_scale"]


@pytest.mark.parametrize(
    "leaves",
    [
        drawn(lokr_w1=(4, 2), lokr_w2=(3, 3)),
        drawn(lokr_w1=(2, 2), lokr_w2_a=(6, 2), lokr_w2_b=(2, 3)),
        drawn(bias_indices=(2, 1), bias_values=(1,), bias_size=(2,)),
    ],
    ids=["across the blocks", "within a block", "sparse"],
)
def test_a_cut_through_blocks_is_refused(leaves: Leaves) -> None:
    """Its rows are no Kronecker product, though they can be served as part of one."""
    with pytest.raises(ConversionError, match="fused module"):
        placed(leaves, targets(4, (4, 0)))


def test_a_change_of_some_outputs_is_refused() -> None:
    """A layout has a module, or it has not."""
    module = nn.Linear(NUM_IN, NUM_OUT)
    spec = ModuleSpec(path="m", kind=ModuleKind.LINEAR, module=module)
    with pytest.raises(ConversionError, match="some of its outputs only"):
        placed(drawn(diff=(4, 6)), [Target(spec=spec, rows=Rows(start=0, stop=4), at=0)])

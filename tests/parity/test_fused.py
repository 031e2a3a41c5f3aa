"""Adapters of fused projections on a base that splits them, and the other way round."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import lokr_core
from lokr_core import AdapterMix
from tests.parity.compare import DTYPES, WAYS, WEIGHTS, Error, error_of
from tests.parity.fused import (
    FUSIONS,
    Answer,
    Fusion,
    answer_of_fused,
    answer_of_split,
    fused_base,
    inputs,
    split_base,
)
from tests.parity.lycoris_peer import Lycoris
from tests.parity.report import worst_of

OUTPUT = {"weight_decompose": True}
INPUT = {"weight_decompose": True, "wd_on_out": False}
TRAINERS = {
    "lokr": Lycoris(algorithm="lokr"),
    "lokr of two full factors": Lycoris(algorithm="lokr", options={"full_matrix": True}),
    "lokr with dora by output": Lycoris(algorithm="lokr", options=OUTPUT),
    "loha": Lycoris(algorithm="loha"),
    "loha too large for khatri-rao": Lycoris(algorithm="loha", dim=8),
    "lora": Lycoris(algorithm="locon"),
    "full difference": Lycoris(algorithm="full"),
}
BY_INPUT = {"lokr with dora by input": Lycoris(algorithm="lokr", options=INPUT)}


def _over(trainer: Lycoris, paths: Sequence[str]) -> Lycoris:
    return Lycoris(
        algorithm=trainer.algorithm,
        dim=trainer.dim,
        options=trainer.options,
        modules={path: {} for path in paths},
    )


@torch.no_grad()
def _errors(
    make_base: Callable[[torch.dtype], nn.Module],
    answer: Answer,
    fusion: Fusion,
    path: Path,
    change: torch.Tensor,
) -> list[Error]:
    errors = []
    for dtype in DTYPES:
        base, x = make_base(dtype), inputs(fusion, dtype)
        plain = answer(base, fusion, x).double()
        adapted = lokr_core.attach(base)
        adapter = lokr_core.read_adapter(path, adapted.spec, "a")
        adapted.add(adapter)
        assert adapter.warnings == ()
        mixes = [AdapterMix.of({adapter: weight}) for weight in WEIGHTS]
        for way in WAYS:
            with adapted.using(mixes, apply=way):
                found = answer(base, fusion, x).double() - plain
            for row, weight in enumerate(WEIGHTS):
                wanted = weight * change[row]
                errors.append(error_of(f"{way} at {weight}", found[row], wanted, dtype))
    return errors


@pytest.mark.parametrize("trainer", (TRAINERS | BY_INPUT).values(), ids=TRAINERS | BY_INPUT)
@pytest.mark.parametrize("name", FUSIONS)
def test_adapter_of_the_original_runs_on_split_modules(
    tmp_path: Path, name: str, trainer: Lycoris, record_property: Callable[[str, object], None]
) -> None:
    """Each split module gets exactly its rows, of factors that stay as they are."""
    fusion = FUSIONS[name]
    x = inputs(fusion, torch.float64)
    trained = _over(trainer, [fusion.original]).train(fused_base(torch.float64), tmp_path, seed=1)
    with torch.no_grad():
        change = answer_of_fused(trained.model, fusion, x)
        change = change - answer_of_fused(fused_base(torch.float64), fusion, x)

    errors = _errors(split_base, answer_of_split, fusion, trained.path, change)

    record_property("parity", ("fused on split", "linear", worst_of(errors), len(errors)))
    assert [error for error in errors if not error.is_small] == []


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
@pytest.mark.parametrize("name", FUSIONS)
def test_adapter_of_split_modules_runs_on_the_original(
    tmp_path: Path, name: str, trainer: Lycoris, record_property: Callable[[str, object], None]
) -> None:
    """Several modules of the file are then one of the base, and rows that none changes stay."""
    fusion = FUSIONS[name]
    x = inputs(fusion, torch.float64)
    changed = fusion.split[::2] if len(fusion.split) > 1 else fusion.split  # q and v, say
    trained = _over(trainer, changed).train(split_base(torch.float64), tmp_path, seed=1)
    with torch.no_grad():
        change = answer_of_split(trained.model, fusion, x)
        change = change - answer_of_split(split_base(torch.float64), fusion, x)

    errors = _errors(fused_base, answer_of_fused, fusion, trained.path, change)

    record_property("parity", ("split on fused", "linear", worst_of(errors), len(errors)))
    assert [error for error in errors if not error.is_small] == []

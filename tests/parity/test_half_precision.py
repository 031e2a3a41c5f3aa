"""Bases of half precision: rounding is that of the base's own dtype, and is foretold."""

from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lokr_core
from lokr_core import AdapterMix
from tests.parity.layers import LAYERS
from tests.parity.matrix import CASES, Case
from tests.parity.trained import Trained

HALVES = [torch.bfloat16, torch.float16]
NUM_ROWS = 64
# What merging loses of a delta, by its size relative to the weight; both are Gaussian. Measured
# apart from this project.
RATIOS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LOSSES = {
    torch.bfloat16: (0.98, 0.94, 0.80, 0.49, 0.17, 0.055, 0.017),
    torch.float16: (0.84, 0.56, 0.21, 0.069, 0.021, 0.007, 0.002),
}
WEIGHT_STD = 0.02  # that the losses were measured at


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _exact(case: Case, dtype: torch.dtype, x: Tensor, folder: Path) -> tuple[Tensor, Tensor]:
    """Return what base and trainer answer in float64, to weights and inputs rounded to dtype."""
    layer = LAYERS[case.layer]
    rounded = nn.Module.to(layer.base(dtype), torch.float64)
    plain = rounded(x.double() if x.is_floating_point() else x)
    trained: Trained = case.trainer.train(rounded, folder, seed=1)
    return plain, trained.model(x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize(("case", "dtype"), list(zip(CASES, cycle(HALVES), strict=False)), ids=str)
@torch.no_grad()
def test_unmerged_answer_is_as_exact_as_the_base(
    tmp_path: Path, case: Case, dtype: torch.dtype
) -> None:
    """Rounded twice, base and sum, an answer may be off by 1.5 times what the base is."""
    layer = LAYERS[case.layer]
    x = layer.inputs(NUM_ROWS, dtype)
    plain, wanted = _exact(case, dtype, x, tmp_path)
    base = layer.base(dtype)
    of_base = _rms(base(x) - plain) / _rms(plain)
    once = _rms(wanted.to(dtype) - wanted) / _rms(wanted)  # an embedding's own answer is exact
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(_path(tmp_path), adapted.spec, "a")
    adapted.add(adapter)

    with adapted.using(AdapterMix.of({adapter: 1.0}), apply="unmerged"):
        found = base(x)

    assert found.dtype is dtype
    assert _rms(found - wanted) / _rms(wanted) <= 1.5 * max(of_base, once)


def _path(folder: Path) -> Path:
    file = folder / "adapter.safetensors"
    return file if file.exists() else folder


def _base(dtype: torch.dtype, *, size: int = 256) -> nn.Module:
    base = nn.Module()
    weight = WEIGHT_STD * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    base.proj = nn.Linear(size, size, bias=False, dtype=dtype)
    base.proj.weight.data.copy_(weight)
    return base


def _adapter(folder: Path, ratio: float, *, size: int = 256, rank: int = 64) -> Path:
    """Write a LoRA whose delta is nearly Gaussian, ``ratio`` times as large as the weight."""
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(size, rank, generator=generator)
    down = torch.randn(rank, size, generator=generator)
    scale = torch.tensor(ratio * WEIGHT_STD * rank**0.5)  # alpha, which the rank divides
    path = folder / "a.safetensors"
    save_file(
        {
            "lycoris_proj.lora_up.weight": up,
            "lycoris_proj.lora_down.weight": down,
            "lycoris_proj.alpha": scale,
        },
        path,
    )
    return path


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("index", range(len(RATIOS)), ids=lambda index: str(RATIOS[index]))
def test_merging_loses_what_is_foretold_and_says_so(
    tmp_path: Path, dtype: torch.dtype, index: int
) -> None:
    """The grid of the dtype takes a small delta away, so a merge has to report how much."""
    ratio = RATIOS[index]
    base = _base(dtype)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(_adapter(tmp_path, ratio), adapted.spec)
    adapted.add(adapter)

    merged = adapted.merge(AdapterMix.of({adapter: 1.0}))

    assert merged.rounding_loss == pytest.approx(LOSSES[dtype][index], rel=0.1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_reported_loss_is_what_a_merged_answer_lacks(tmp_path: Path, dtype: torch.dtype) -> None:
    """The figure is of the delta that is applied, not of one that was computed beside it."""
    base = _base(dtype)
    weight = base.get_parameter("proj.weight").double()
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(_adapter(tmp_path, 3e-3), adapted.spec)
    adapted.add(adapter)
    mix = AdapterMix.of({adapter: 1.0})
    units = torch.eye(256, dtype=dtype)

    with adapted.using(mix, apply="merged"):
        applied = base.get_submodule("proj")(units).double().mT - weight

    delta = adapter.delta_weights()["proj.weight"].double()
    loss = float((applied - delta).norm() / delta.norm())
    assert adapted.merge(mix).rounding_loss == pytest.approx(loss, rel=1e-3)

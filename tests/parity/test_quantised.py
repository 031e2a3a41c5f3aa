"""Linear layers of eight bits: adapters are added to what the quantised layer answers."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import lokr_core
from lokr_core import AdapterMix
from lokr_core.errors import MergeError
from tests.parity.compare import TOLERANCES, WEIGHTS
from tests.parity.layers import LAYERS, PATH, Base
from tests.parity.matrix import CASES, Case

QUANTISED = [case for case in CASES if case.layer == "linear" and not case.is_replacement]
NUM_ROWS = 6
TOLERANCE = TOLERANCES[torch.float32]


def _quantised() -> Base:
    base = LAYERS["linear"].base(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(base, Int8WeightOnlyConfig(), filter_fn=lambda _, path: path == PATH)
    return base


def _dequantised(quantised: Base) -> Base:
    """Return a base in float64 whose weight is what the quantised one stands for."""
    base = LAYERS["linear"].base(torch.float64)
    weight = quantised.get_parameter(f"{PATH}.weight")
    base.get_parameter(f"{PATH}.weight").data.copy_(weight.dequantize())
    return base


@pytest.mark.parametrize("case", QUANTISED, ids=lambda case: case.form)
@torch.no_grad()
def test_quantised_layer_takes_what_the_trainer_adds(tmp_path: Path, case: Case) -> None:
    """The factors stay exact beside a quantised weight, whose norms DoRA is computed from."""
    base = _quantised()
    x = LAYERS["linear"].inputs(NUM_ROWS, torch.float32)
    plain = base(x)
    exact = _dequantised(base)
    answers = exact(x.double())
    trained = case.trainer.train(exact, tmp_path, seed=1)
    change = trained.model(x.double()) - answers
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(trained.path, adapted.spec, "a")
    adapted.add(adapter)
    mixes = [AdapterMix(), *(AdapterMix.of({adapter: weight}) for weight in WEIGHTS)]

    with adapted.using([*mixes, AdapterMix(), mixes[1]], apply="unmerged"):
        found: Tensor = base(x)

    weights = torch.tensor([0.0, *WEIGHTS, 0.0, 1.0], dtype=torch.float64)
    wanted = weights[:, None, None] * change
    assert torch.equal(found[[0, 4]], plain[[0, 4]])
    for row in (1, 2, 3, 5):
        error = (found[row].double() - plain[row].double() - wanted[row]).norm()
        assert error <= TOLERANCE * wanted[row].norm()


def test_merging_into_a_quantised_layer_is_refused_by_name(tmp_path: Path) -> None:
    """A delta would be rounded to eight bits, or the layer would silently grow."""
    base = _quantised()
    trained = QUANTISED[0].trainer.train(_dequantised(base), tmp_path, seed=1)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(trained.path, adapted.spec, "a")
    adapted.add(adapter)
    mix = AdapterMix.of({adapter: 1.0})

    with pytest.raises(MergeError, match=rf"{PATH}.*quantised"):
        adapted.merge(mix)
    with pytest.raises(MergeError, match=rf"{PATH}.*quantised"), adapted.using(mix, "merged"):
        pytest.fail("entered")

"""The definitions agree with the dense algebra that they stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lokr_core.ops.torch_ops import (
    adapted_weight,
    delta_linear,
    delta_weight,
    dora_gain,
    kron,
    lokr_linear,
    module_change,
)
from lokr_core.weights import GainAxis, LokrWeights, ModuleWeights, Term
from tests.core.factors import SIZES, draw, lokr_weights, random_module

SEEDS = st.integers(0, 2**20)


@given(o1=SIZES, i1=SIZES, o2=SIZES, i2=SIZES, seed=SEEDS)
def test_kron_is_the_kronecker_product(o1: int, i1: int, o2: int, i2: int, seed: int) -> None:
    """Every delta rests on this product; torch's own has no batch dimension."""
    w1, w2 = draw(2, o1, i1, seed=seed), draw(2, o2, i2, seed=seed + 1)

    both = kron(w1, w2)

    assert torch.equal(both[0], torch.kron(w1[0], w2[0]))
    assert torch.equal(both[1], torch.kron(w1[1], w2[1]))


@given(weights=lokr_weights(), rows=st.integers(1, 4))
def test_factored_forward_equals_dense_forward(weights: LokrWeights, rows: int) -> None:
    """Applying the factors and applying the dense delta give the same output."""
    x = draw(rows, weights.shape[1], seed=rows)
    dense = weights.scale * torch.kron(weights.w1.dense(), weights.w2.dense())

    torch.testing.assert_close(lokr_linear(x, weights), x @ dense.mT)
    torch.testing.assert_close(delta_weight(weights, torch.float64), dense)


@given(weights=lokr_weights(num_entries=3), rows=st.integers(1, 3))
def test_factored_forward_takes_several_adapters(weights: LokrWeights, rows: int) -> None:
    """Leading dimensions of the factors stand for adapters side by side."""
    x = draw(3, rows, weights.shape[1], seed=rows)

    torch.testing.assert_close(lokr_linear(x, weights), x @ delta_weight(weights, torch.float64).mT)


def test_hadamard_forward_equals_dense_forward() -> None:
    """A large LoHa is formed, and then applied like any weight."""
    weights = random_module(draw(15, 20, seed=0), "hadamard", 1).terms[0].delta
    x = draw(4, 20, seed=2)

    torch.testing.assert_close(delta_linear(x, weights), x @ delta_weight(weights, x.dtype).mT)


def test_deltas_are_computed_in_the_dtype_asked_for() -> None:
    """Half-precision factors are widened before they are multiplied, not after."""
    weights = random_module(draw(15, 20, seed=0), "low rank both", 1).terms[0].delta
    assert isinstance(weights, LokrWeights)
    half = LokrWeights(
        w1=weights.w1.to(torch.bfloat16), w2=weights.w2.to(torch.bfloat16), scale=weights.scale
    )
    wide = LokrWeights(
        w1=half.w1.to(torch.float32), w2=half.w2.to(torch.float32), scale=weights.scale
    )

    assert torch.equal(delta_weight(half, torch.float32), delta_weight(wide, torch.float32))


@pytest.mark.parametrize("axis", GainAxis)
def test_dora_gain_gives_every_row_or_column_the_magnitude(axis: GainAxis) -> None:
    """DoRA's weight has the trained norm along its axis, which is what makes it DoRA."""
    weight = draw(15, 20, seed=0)
    delta = random_module(weight, "low rank w2", 1).terms[0].delta
    dim = 1 if axis is GainAxis.OUTPUT else 0
    magnitude = draw(weight.shape[1 - dim], seed=3).abs() + 1

    gain = dora_gain(weight, [Term(delta=delta)], magnitude, axis, eps=0.0)

    adapted = adapted_weight(weight, ModuleWeights.of(delta, gain), torch.float64)
    torch.testing.assert_close(adapted.norm(dim=dim), magnitude)


@pytest.mark.parametrize("form", ["dora output", "dora input"])
def test_change_of_a_module_with_gain_is_the_difference_to_the_base(form: str) -> None:
    """A mix sums differences to the base, so weight 0 is off."""
    weight = draw(15, 20, seed=0)
    module = random_module(weight, form, 1)

    change = module_change(weight, module, torch.float64)

    torch.testing.assert_close(weight + change, adapted_weight(weight, module, torch.float64))


def test_change_of_a_plain_module_does_not_pass_through_the_base() -> None:
    """Subtracting the base again would round the delta."""
    weight = draw(15, 20, seed=0, dtype=torch.bfloat16) * 1e6
    module = random_module(weight.double(), "full", 1)

    delta = delta_weight(module.terms[0].delta, torch.float32)
    assert torch.equal(module_change(weight, module, torch.float32), delta)
    with_base = adapted_weight(weight, module, torch.float32) - weight.float()
    assert not torch.equal(with_base, delta)

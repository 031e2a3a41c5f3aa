"""Factors check what they are built of, and know their shapes."""

import pytest
import torch

from lokr_core.errors import ShapeError
from lokr_core.weights import FullFactor, HadamardWeights, LokrWeights, LowRankFactor
from tests.core.factors import draw, low_rank


def test_a_vector_is_no_factor() -> None:
    """A factor that is no matrix would broadcast into a wrong result."""
    with pytest.raises(ShapeError, match=r"a full factor must be a matrix, not \(3,\)"):
        FullFactor(matrix=torch.ones(3))
    with pytest.raises(ShapeError, match="factor b must be a matrix"):
        LowRankFactor(a=torch.ones(2, 2), b=torch.ones(2))


def test_low_rank_factor_refuses_unequal_ranks() -> None:
    """Both shapes are named, so that the file at fault can be found."""
    with pytest.raises(ShapeError, match=r"a is \(4, 2\) but b is \(3, 5\)"):
        LowRankFactor(a=torch.ones(4, 2), b=torch.ones(3, 5))


def test_hadamard_refuses_unequal_sides() -> None:
    """An elementwise product of unequal sides would broadcast."""
    with pytest.raises(ShapeError, match=r"left is \(4, 6\) but right is \(4, 1\)"):
        HadamardWeights(left=low_rank(4, 6, 2, 0), right=low_rank(4, 1, 2, 0), scale=1.0)


def test_shapes_are_those_of_the_dense_delta() -> None:
    """Readers compare these shapes with the base's weights."""
    lokr = LokrWeights(w1=FullFactor(matrix=draw(2, 3, seed=0)), w2=low_rank(5, 7, 2, 0), scale=1.0)
    hadamard = HadamardWeights(left=low_rank(4, 6, 2, 0), right=low_rank(4, 6, 3, 0), scale=1.0)

    assert lokr.shape == (10, 21)
    assert hadamard.shape == (4, 6)


def test_factors_change_dtype_as_a_whole() -> None:
    """Deltas are computed in the compute dtype, whatever the file's precision."""
    full, low = FullFactor(matrix=draw(2, 3, seed=0)), low_rank(2, 3, 2, 0)

    assert full.to(torch.float32).dense().dtype == torch.float32
    assert low.to(torch.float32).dense().dtype == torch.float32
    assert torch.equal(low.dense(), low.a @ low.b)

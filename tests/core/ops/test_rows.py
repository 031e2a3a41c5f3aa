"""Slices of a delta's outputs are exact, and stay in the form of the delta."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lokr_core.layout import delta_factors, factor_tensors
from lokr_core.ops.rows import row_slice
from lokr_core.ops.torch_ops import delta_weight, terms_weight
from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    Rows,
    TuckerFactor,
)

SIZES = st.integers(1, 4)


def drawn(data: st.DataObject, *shape: int) -> Tensor:
    """Return random numbers, float64."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def product(data: st.DataObject, rows: int, cols: int) -> LowRankFactor | TuckerFactor:
    """Return a factor of several tensors, [rows, cols * K]."""
    if data.draw(st.booleans()):
        rank = data.draw(SIZES)
        return LowRankFactor(a=drawn(data, rows, rank), b=drawn(data, rank, 2 * cols))
    first, second = data.draw(SIZES), data.draw(SIZES)
    return TuckerFactor(
        core=drawn(data, first, second, 2), a=drawn(data, first, rows), b=drawn(data, second, cols)
    )


def delta_of(data: st.DataObject) -> DeltaWeights:
    """Return a delta of any form."""
    kind = data.draw(st.sampled_from(["lokr", "hadamard", "dense"]))
    rows, cols = data.draw(SIZES), data.draw(SIZES)
    if kind == "dense":
        return DenseWeights(matrix=drawn(data, rows, cols), scale=0.5)
    if kind == "hadamard":
        left, right = product(data, rows, cols), product(data, rows, cols)
        return HadamardWeights(left=left, right=right, scale=0.5)
    w1: Factor = FullFactor(matrix=drawn(data, data.draw(SIZES), data.draw(SIZES)))
    if data.draw(st.booleans()):
        rank = data.draw(SIZES)
        w1 = LowRankFactor(a=drawn(data, data.draw(SIZES), rank), b=drawn(data, rank, 3))
    is_full = data.draw(st.booleans())
    w2 = FullFactor(matrix=drawn(data, rows, cols)) if is_full else product(data, rows, cols)
    return LokrWeights(w1=w1, w2=w2, scale=0.5)


@given(data=st.data())
def test_slice_has_the_outputs_of_the_delta(data: st.DataObject) -> None:
    """A fused projection is served on split modules by such slices, whatever their sizes."""
    delta = delta_of(data)
    num_out, num_in = delta.shape
    start = data.draw(st.integers(0, num_out - 1))
    stop = data.draw(st.integers(start + 1, num_out))
    at = data.draw(st.integers(0, 3))

    term = row_slice(delta, Rows(start=start, stop=stop), at)

    found = terms_weight([term], torch.zeros(at + stop - start, num_in, dtype=torch.float64))
    wanted = delta_weight(delta, torch.float64)[start:stop]
    torch.testing.assert_close(found[at:], wanted)
    assert not found[:at].any()


@given(data=st.data())
def test_slice_takes_no_memory_of_its_own(data: st.DataObject) -> None:
    """Nothing is multiplied out: every tensor is a view of the delta's."""
    delta = delta_of(data)
    num_out = delta.shape[0]
    start = data.draw(st.integers(0, num_out - 1))

    term = row_slice(delta, Rows(start=start, stop=num_out))

    whole = [t for factor in delta_factors(delta) for t in factor_tensors(factor)]
    parts = [t for factor in delta_factors(term.delta) for t in factor_tensors(factor)]
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
        assert ours.numel() <= theirs.numel()


def test_slice_of_whole_rows_of_w1_is_not_trimmed() -> None:
    """The projections of a fused qkv most often lie so, and then nothing is computed in vain."""
    delta = LokrWeights(
        w1=FullFactor(matrix=torch.ones(6, 2)), w2=FullFactor(matrix=torch.ones(4, 3)), scale=1.0
    )

    term = row_slice(delta, Rows(start=8, stop=16))

    assert term.rows is None
    assert term.delta.shape == (8, 6)


def test_slice_within_one_row_of_w1_takes_rows_of_w2() -> None:
    """Rows of w2 that no output needs are left out."""
    delta = LokrWeights(
        w1=FullFactor(matrix=torch.ones(2, 2)), w2=FullFactor(matrix=torch.ones(4, 3)), scale=1.0
    )

    term = row_slice(delta, Rows(start=5, stop=7))

    assert term.rows is None
    assert term.delta.shape == (2, 6)

"""The batched convolutions and look-ups give what their definitions give."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lokr_core.ops.batched_conv import batched_conv
from lokr_core.ops.batched_lookup import BatchedLookup
from lokr_core.ops.contraction import Side, Taps, cheapest_steps, count_macs, grid_of
from lokr_core.ops.geometry import ConvGeometry
from lokr_core.ops.torch_ops import delta_conv, delta_embedding, delta_weight
from lokr_core.weights import (
    DeltaWeights,
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    Term,
    TuckerFactor,
)
from tests.core.factors import assert_close, draw, lokr_weights, low_rank, random_factor

SMALL = st.integers(1, 3)


@st.composite
def geometries(drawing: st.DrawFn) -> ConvGeometry:
    """Draw a geometry of any number of axes."""
    kernel = tuple(drawing(st.lists(SMALL, min_size=1, max_size=3)))
    sizes = [tuple(drawing(SMALL) for _ in kernel) for _ in range(2)]
    mode = drawing(st.sampled_from(["zeros", "circular"]))
    return ConvGeometry(
        kernel=kernel,
        stride=sizes[0],
        dilation=sizes[1],
        groups=drawing(st.integers(1, 3)),
        padding=tuple((drawing(st.integers(0, 1)), drawing(st.integers(0, 1))) for _ in kernel),
        padding_mode=mode,
    )


def entry(weights: DeltaWeights, index: int) -> Tensor:
    """Return the dense delta of one entry."""
    return delta_weight(weights, torch.float64)[index]


@given(data=st.data(), geometry=geometries())
def test_batched_convolutions_are_their_definition(
    data: st.DataObject, geometry: ConvGeometry
) -> None:
    """Groups of channels, strides, borders and every form of the factors change no number."""
    num_entries, num_rows, taps = data.draw(SMALL), data.draw(SMALL), geometry.taps.num_taps
    groups = geometry.groups
    o1, o2 = data.draw(st.sampled_from([(2 * groups, 3), (2, 3 * groups)]))
    i1, i2, rank = data.draw(SMALL), data.draw(SMALL), data.draw(st.none() | SMALL)
    w2: Factor = random_factor(o2, i2 * taps, rank, 7, num_entries)
    if data.draw(st.booleans()):
        core = draw(num_entries, 2, 3, taps, seed=2)
        sides = draw(num_entries, 2, o2, seed=3), draw(num_entries, 3, i2, seed=4)
        w2 = TuckerFactor(core=core, a=sides[0], b=sides[1])
    w1 = random_factor(o1, i1, data.draw(st.none() | SMALL), 1, num_entries)
    weights: DeltaWeights = LokrWeights(w1=w1, w2=w2, scale=-0.5)
    if data.draw(st.integers(0, 3)) == 0:
        left, right = (low_rank(o1 * o2, i1 * i2 * taps, 2, n, num_entries) for n in (1, 2))
        weights = HadamardWeights(left=left, right=right, scale=-0.5)
    x = draw(num_entries * num_rows, groups * i1 * i2, *(8 for _ in geometry.kernel), seed=9)

    found = batched_conv(weights, num_entries, geometry).product(x)

    parts = x.split(num_rows)
    wanted = [delta_conv(parts[n], entry(weights, n), geometry) for n in range(num_entries)]
    assert_close(found, torch.cat(wanted))


@given(weights=lokr_weights(num_entries=3), num_rows=SMALL)
def test_batched_lookups_are_their_definition(weights: LokrWeights, num_rows: int) -> None:
    """A row of a Kronecker product is the product of one row of each factor."""
    num_outputs = weights.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, num_outputs, (3 * num_rows,), generator=generator)

    found = BatchedLookup(Term(delta=weights)).product(ids)

    rows = [entry(weights, n)[part] for n, part in enumerate(ids.split(num_rows))]
    assert_close(found, torch.cat(rows))


@given(weights=lokr_weights())
def test_rows_of_an_embedding_are_rows_of_its_delta(weights: LokrWeights) -> None:
    """The definition of the look-up is that of the delta."""
    ids = torch.arange(weights.shape[0]).flip(0)

    assert_close(delta_embedding(ids, weights), delta_weight(weights, torch.float64)[ids])


def test_a_tucker_form_is_reduced_before_it_is_convolved() -> None:
    """The kernel is applied between the two small ranks, where it is cheapest."""
    one = FullFactor(matrix=draw(1, 1, seed=0))
    core, side = draw(4, 4, 9, seed=1), draw(4, 64, seed=2)
    weights = LokrWeights(w1=one, w2=TuckerFactor(core=core, a=side, b=side), scale=1.0)
    taps = Taps(num_taps=9)

    steps = cheapest_steps(weights, taps)

    rights = [step for step in steps if step.side is Side.RIGHT]
    assert [step.num_taps for step in rights] == [None, 9, None]
    macs = count_macs(steps, grid_of(weights, taps), taps)
    assert macs == 64 * 4 + 4 * 4 * 9 + 4 * 64 + 4  # to rank 4, the kernel, to 64, and w1


def test_strides_are_counted_where_positions_are_many() -> None:
    """What comes before a strided kernel is computed for every input position."""
    w1 = FullFactor(matrix=draw(2, 2, seed=0))
    weights = LokrWeights(w1=w1, w2=FullFactor(matrix=draw(8, 8 * 9, seed=1)), scale=1.0)

    dense = cheapest_steps(weights, Taps(num_taps=9, num_positions=1))
    strided = cheapest_steps(weights, Taps(num_taps=9, num_positions=4))

    assert count_macs(dense, (2, 8)) == 2 * 8 * 8 * 9 + 2 * 2 * 8
    assert strided[0].side is Side.RIGHT

"""The order of contraction is the cheapest there is, and counts what torch does."""

from itertools import permutations

import torch
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode

from lokr_core.ops.contraction import Side, Step, cheapest_steps, count_macs
from lokr_core.weights import Factor, FullFactor, LokrWeights
from tests.core.factors import draw, lokr_weights


def inner_first(factor: Factor, side: Side) -> list[Step]:
    """Return a factor's products in the order in which they must be made."""
    matrices = (factor.matrix,) if isinstance(factor, FullFactor) else (factor.b, factor.a)
    return [Step(side=side, matrix=matrix) for matrix in matrices]


def all_orders(weights: LokrWeights) -> list[tuple[Step, ...]]:
    """Return every permutation of the products that keeps each side's own order."""
    left, right = inner_first(weights.w1, Side.LEFT), inner_first(weights.w2, Side.RIGHT)
    return [
        order
        for order in permutations(left + right)
        if [s for s in order if s.side is Side.LEFT] == left
        and [s for s in order if s.side is Side.RIGHT] == right
    ]


@given(weights=lokr_weights())
def test_no_order_is_cheaper(weights: LokrWeights) -> None:
    """Decoding pays for every row of every module, so the order is never left to chance."""
    grid = weights.w1.shape[1], weights.w2.shape[1]
    costs = [count_macs(order, grid) for order in all_orders(weights)]

    assert count_macs(cheapest_steps(weights), grid) == min(costs)


@given(weights=lokr_weights())
def test_counted_operations_are_those_that_torch_makes(weights: LokrWeights) -> None:
    """The way of application is chosen by these counts."""
    steps = cheapest_steps(weights)
    grid = weights.w1.shape[1], weights.w2.shape[1]
    x = draw(*grid, seed=0)

    with FlopCounterMode(display=False) as counter:
        for step in steps:
            x = torch.mm(step.matrix, x) if step.side is Side.LEFT else torch.mm(x, step.matrix.mT)

    assert counter.get_total_flops() == 2 * count_macs(steps, grid)

"""The order in which a Kronecker product is applied to a row, chosen by counted operations.

A row x, seen as a grid [I1, I2], becomes ``w1 @ grid @ w2.mT``. Each factor is one matrix, or two
when it is of low rank; products from the left and from the right commute, so every interleaving
that keeps each side's own order gives the same result, at a different cost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from typing import assert_never

from torch import Tensor

from lokr_core.weights import Factor, FullFactor, LokrWeights, LowRankFactor, TuckerFactor


class Side(Enum):
    """The side of the grid that a matrix multiplies."""

    LEFT = "left"  # a part of w1, on the grid's rows
    RIGHT = "right"  # a part of w2, on the grid's columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One product: ``matrix @ grid`` from the left, ``grid @ matrix.mT`` from the right."""

    side: Side
    matrix: Tensor  # [..., out, in]


def _matrices(factor: Factor) -> tuple[Tensor, ...]:
    """Return a factor's matrices in the order in which they meet the grid."""
    match factor:
        case FullFactor():
            return (factor.matrix,)
        case LowRankFactor():
            return factor.b, factor.a
        case TuckerFactor():
            return (factor.dense(),)
    assert_never(factor)


def _interleavings(left: Sequence[Tensor], right: Sequence[Tensor]) -> Iterator[tuple[Step, ...]]:
    """Yield every order that keeps each side's own order."""
    total = len(left) + len(right)
    for places in combinations(range(total), len(left)):
        lefts, rights = iter(left), iter(right)
        yield tuple(
            Step(side=Side.LEFT, matrix=next(lefts))
            if place in places
            else Step(side=Side.RIGHT, matrix=next(rights))
            for place in range(total)
        )


def count_macs(steps: Sequence[Step], grid: tuple[int, int]) -> int:
    """Count the multiply-adds that ``steps`` take on one row of a grid [I1, I2]."""
    rows, cols = grid
    macs = 0
    for step in steps:
        out, inner = step.matrix.shape[-2:]
        if step.side is Side.LEFT:
            macs += out * inner * cols
            rows = out
        else:
            macs += out * inner * rows
            cols = out
    return macs


def cheapest_steps(weights: LokrWeights) -> tuple[Step, ...]:
    """Return the products that apply ``w1 ⊗ w2`` (without its scale) with the fewest operations."""
    grid = weights.w1.shape[1], weights.w2.shape[1]
    orders = _interleavings(_matrices(weights.w1), _matrices(weights.w2))
    return min(orders, key=lambda steps: count_macs(steps, grid))

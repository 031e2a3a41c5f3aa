"""The order in which a Kronecker product is applied to a row, chosen by counted operations.

A row x, seen as a grid [I1, I2], becomes ``w1 @ grid @ w2.mT``. Each factor is one matrix, or
several when it is of low rank; products from the left and from the right commute, so every
interleaving that keeps each side's own order gives the same result, at a different cost. Of a
convolution the right side holds the kernel: one of its products is a convolution, and what comes
before it works on input positions, what comes after it on output positions.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Taps:
    """What counting needs to know of a convolution."""

    num_taps: int  # K, the product of the kernel's sizes
    num_positions: int = 1  # input positions for each output position, the product of the strides
    num_groups: int = 1  # of channels; each has its own rows of w1, and all share w2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One product: ``matrix @ grid`` from the left, ``grid @ matrix.mT`` from the right."""

    side: Side
    matrix: Tensor  # [..., out, in]; of a convolution [..., out, in * K]
    num_taps: int | None = None  # K where the step is the convolution

    @property
    def num_inner(self) -> int:
        """Grid rows or columns that the product sums over, without taps."""
        return self.matrix.shape[-1] // (self.num_taps or 1)


def _left_steps(factor: Factor) -> tuple[Step, ...]:
    return tuple(Step(side=Side.LEFT, matrix=matrix) for matrix in _matrices(factor))


def _right_steps(factor: Factor, taps: Taps | None) -> tuple[Step, ...]:
    matrices = _matrices(factor) if taps is None else _conv_matrices(factor)
    spatial = 1 if len(matrices) == 3 else 0  # the core of three, the first of one or two
    return tuple(
        Step(
            side=Side.RIGHT,
            matrix=matrix,
            num_taps=taps.num_taps if taps is not None and index == spatial else None,
        )
        for index, matrix in enumerate(matrices)
    )


def _matrices(factor: Factor) -> tuple[Tensor, ...]:
    """Return a factor's matrices in the order in which they meet the grid."""
    match factor:
        case LowRankFactor():
            return factor.b, factor.a
        case FullFactor() | TuckerFactor():
            return (factor.dense(),)
    assert_never(factor)


def _conv_matrices(factor: Factor) -> tuple[Tensor, ...]:
    """Return the same for a factor of a convolution; a Tucker form keeps its core."""
    if isinstance(factor, TuckerFactor):
        return factor.b, factor.core.flatten(-2), factor.a.mT  # the core is [..., R1, R2 * K]
    return _matrices(factor)


def _interleavings(left: Sequence[Step], right: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    """Yield every order that keeps each side's own order."""
    total = len(left) + len(right)
    for places in combinations(range(total), len(left)):
        lefts, rights = iter(left), iter(right)
        yield tuple(next(lefts) if place in places else next(rights) for place in range(total))


_NO_TAPS = Taps(num_taps=1)


def count_macs(steps: Sequence[Step], grid: tuple[int, int], taps: Taps = _NO_TAPS) -> int:
    """Count the multiply-adds of ``steps`` for one row, or one output position.

    Args:
        steps: Products in their order.
        grid: Rows and columns at the start, I1 and I2, of one group of channels.
        taps: Of a convolution.
    """
    rows, cols = grid
    macs, positions = 0, taps.num_positions
    last_left = max(n for n, step in enumerate(steps) if step.side is Side.LEFT)
    for index, step in enumerate(steps):
        if step.num_taps is not None:
            positions = 1
        out, inner = step.matrix.shape[-2:]
        if index == last_left:
            out //= taps.num_groups
        if step.side is Side.LEFT:
            macs += out * inner * cols * positions
            rows = out
        else:
            macs += out * inner * rows * positions
            cols = out
    return taps.num_groups * macs


def grid_of(weights: LokrWeights, taps: Taps | None = None) -> tuple[int, int]:
    """Return the grid that an input is seen as: I1 rows and I2 columns, without taps."""
    num_taps = 1 if taps is None else taps.num_taps
    return weights.w1.shape[1], weights.w2.shape[1] // num_taps


def cheapest_steps(weights: LokrWeights, taps: Taps | None = None) -> tuple[Step, ...]:
    """Return the products that apply ``w1 ⊗ w2`` (without its scale) with the fewest operations.

    Args:
        weights: The factors.
        taps: Of a convolution; None for a product of matrices.
    """
    grid = grid_of(weights, taps)
    orders = _interleavings(_left_steps(weights.w1), _right_steps(weights.w2, taps))
    return min(orders, key=lambda steps: count_macs(steps, grid, taps or _NO_TAPS))


def is_split(weights: LokrWeights, taps: Taps) -> bool:
    """Whether each group of channels has whole rows of w1, so that the factors can be applied."""
    return weights.w1.shape[0] % taps.num_groups == 0

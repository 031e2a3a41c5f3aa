"""Operations of the forms of a delta, counted as they are carried out."""

from typing import assert_never

from lokr_core.layout import delta_factors
from lokr_core.ops.contraction import cheapest_steps, count_macs, grid_of, is_split
from lokr_core.ops.geometry import ConvGeometry
from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    TuckerFactor,
)


def row_macs(delta: DeltaWeights, geometry: ConvGeometry | None, *, is_table: bool) -> int:
    """Count the multiply-adds of one row through a delta.

    Args:
        delta: The delta.
        geometry: Of a convolution, whose row is one output position; else None.
        is_table: Whether it is an embedding's, of which one row is formed.
    """
    if is_table:
        return _lookup_macs(delta)
    taps = None if geometry is None else geometry.taps
    if isinstance(delta, LokrWeights) and (taps is None or is_split(delta, taps)):
        steps, grid = cheapest_steps(delta, taps), grid_of(delta, taps)
        return count_macs(steps, grid) if taps is None else count_macs(steps, grid, taps)
    num_outputs, num_columns = delta.shape
    is_formed = not isinstance(delta, DenseWeights)
    return num_outputs * num_columns + is_formed * forming_macs(delta)


def forming_macs(delta: DeltaWeights) -> int:
    """Count the multiply-adds of forming the dense delta."""
    num_outputs, num_columns = delta.shape
    return sum(map(_dense_macs, delta_factors(delta))) + num_outputs * num_columns


def _dense_macs(factor: Factor) -> int:
    """Count the multiply-adds of forming a factor."""
    match factor:
        case FullFactor():
            return 0
        case LowRankFactor():
            rows, cols = factor.shape
            return rows * cols * factor.a.shape[-1]
        case TuckerFactor():
            outer, inner, taps = factor.core.shape[-3:]
            rows, cols = factor.a.shape[-1], factor.b.shape[-1]
            return outer * rows * inner * taps + rows * inner * taps * cols
    assert_never(factor)


def _row_of(factor: Factor) -> int:
    """Count the multiply-adds of forming one row of a factor."""
    return _dense_macs(factor) // factor.shape[0]


def _lookup_macs(delta: DeltaWeights) -> int:
    """Count the multiply-adds of forming one row of a delta."""
    width = delta.shape[1]
    match delta:
        case LokrWeights() | HadamardWeights():
            return sum(map(_row_of, delta_factors(delta))) + width
        case DenseWeights():
            return width
    assert_never(delta)

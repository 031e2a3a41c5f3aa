"""row_slice: some outputs of a delta, in the form that the delta has.

Outputs ``[start, stop)`` of ``w1 ⊗ w2`` lie in the products of a few rows of w1 with all of w2, so
a slice is the Kronecker product of those rows, trimmed at both ends; nothing is multiplied out.
"""

from dataclasses import replace
from typing import assert_never

from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    Rows,
    Term,
    TuckerFactor,
)


def row_slice(delta: DeltaWeights, rows: Rows, at: int = 0) -> Term:
    """Return the term that adds outputs ``rows`` of a delta to a module's outputs from ``at``."""
    match delta:
        case LokrWeights():
            return _lokr_slice(delta, rows, at)
        case HadamardWeights():
            left, right = _factor_rows(delta.left, rows), _factor_rows(delta.right, rows)
            assert not isinstance(left, FullFactor)
            assert not isinstance(right, FullFactor)
            return Term(delta=replace(delta, left=left, right=right), at=at)
        case DenseWeights():
            matrix = delta.matrix[..., rows.start : rows.stop, :]
            return Term(delta=replace(delta, matrix=matrix), at=at)
    assert_never(delta)


def _lokr_slice(delta: LokrWeights, rows: Rows, at: int) -> Term:
    num_inner = delta.w2.shape[0]  # O2
    first, last = rows.start // num_inner, -(-rows.stop // num_inner)
    w1 = _factor_rows(delta.w1, Rows(start=first, stop=last))
    begin = first * num_inner
    inner = Rows(start=rows.start - begin, stop=rows.stop - begin)  # of the covering rows
    if last - first == 1:
        return Term(delta=replace(delta, w1=w1, w2=_factor_rows(delta.w2, inner)), at=at)
    is_all = len(inner) == (last - first) * num_inner
    return Term(delta=replace(delta, w1=w1), rows=None if is_all else inner, at=at)


def _factor_rows(factor: Factor, rows: Rows) -> Factor:
    match factor:
        case FullFactor():
            return FullFactor(matrix=factor.matrix[..., rows.start : rows.stop, :])
        case LowRankFactor():
            return LowRankFactor(a=factor.a[..., rows.start : rows.stop, :], b=factor.b)
        case TuckerFactor():
            return replace(factor, a=factor.a[..., rows.start : rows.stop])
    assert_never(factor)

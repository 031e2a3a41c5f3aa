"""Batched lookups over adapters of one layout: the fast copy of ``torch_ops.delta_embedding``.

A group is E adapters side by side, each with L token ids. Of each delta only the rows of those
tokens are formed.
"""

from typing import assert_never

import torch
from torch import Tensor

from lokr_core.weights import (
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    Term,
    TuckerFactor,
)


class BatchedLookup:
    """The deltas of E adapters for one embedding, or for a range of its tokens."""

    def __init__(self, term: Term) -> None:
        """Prepare a term whose factors are [E, ...]."""
        delta = term.delta
        assert isinstance(delta, LokrWeights | HadamardWeights)  # what is dense is not banked
        self._delta = delta
        self._start = 0 if term.rows is None else term.rows.start
        self._outputs = term.outputs

    def product(self, x: Tensor) -> Tensor:
        """Return the deltas' rows [E * L, D] for token ids [E * L]."""
        index = x - self._outputs.start + self._start
        is_inside = (x >= self._outputs.start) & (x < self._outputs.stop)
        rows = self._rows(torch.where(is_inside, index, self._start))
        return torch.where(is_inside[:, None], rows, rows.new_zeros(()))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the deltas' rows to ``out`` [E * L, D], in place."""
        out.add_(self.product(x))

    def _rows(self, index: Tensor) -> Tensor:
        """Return rows of the deltas, [E * L, D]."""
        delta = self._delta
        if isinstance(delta, HadamardWeights):
            rows = factor_rows(delta.left, index) * factor_rows(delta.right, index)
            return delta.scale * rows
        num_rows = delta.w2.shape[0]
        first = factor_rows(delta.w1, index // num_rows)  # [E * L, I1]
        second = factor_rows(delta.w2, index % num_rows)  # [E * L, I2]
        return delta.scale * (first[:, :, None] * second[:, None, :]).flatten(1)


def factor_rows(factor: Factor, index: Tensor) -> Tensor:
    """Return rows of a factor of E adapters, [E * L, cols], for an index [E * L]."""
    match factor:
        case LowRankFactor():
            return torch.bmm(_rows(factor.a, index), factor.b).flatten(0, 1)
        case FullFactor() | TuckerFactor():
            return _rows(factor.dense(), index).flatten(0, 1)
    assert_never(factor)


def _rows(matrices: Tensor, index: Tensor) -> Tensor:
    """Return rows of each of E matrices, [E, L, cols]."""
    num_entries = matrices.shape[0]
    entries = torch.arange(num_entries, device=index.device)[:, None]
    return matrices[entries, index.view(num_entries, -1)]

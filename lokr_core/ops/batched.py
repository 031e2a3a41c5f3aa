"""Batched products over adapters of one layout: the fast copy of ``torch_ops.delta_linear``.

A group is E adapters side by side, each with L rows. Products from the right take the grid as it
is; a product from the left wants the grid's first axis in front of the rows, so the axes are
swapped then and swapped back at the end; in the cheapest order the grid is smallest there.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lokr_core.ops.contraction import Side, cheapest_steps
from lokr_core.ops.torch_ops import delta_weight
from lokr_core.weights import DeltaWeights, HadamardWeights, LokrWeights


class BatchedDelta(Protocol):
    """A group's delta of one module, ready to be applied."""

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O] for activations [E * L, I]."""
        ...

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out`` [E * L, O], in place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Product:
    """One step with its matrix turned so that it can be multiplied as it is."""

    is_left: bool
    matrix: Tensor  # left: [E, out, in]; right: [E, in, out]
    size: int  # out


class BatchedLokr:
    """The Kronecker deltas of E adapters for one module."""

    def __init__(self, weights: LokrWeights) -> None:
        self._num_entries = cheapest_steps(weights)[0].matrix.shape[0]
        self._grid = weights.w1.shape[1], weights.w2.shape[1]
        self._out_grid = weights.w1.shape[0], weights.w2.shape[0]
        self._scale = weights.scale
        products = [
            _Product(
                is_left=step.side is Side.LEFT,
                matrix=step.matrix if step.side is Side.LEFT else step.matrix.mT,
                size=step.matrix.shape[-2],
            )
            for step in cheapest_steps(weights)
        ]
        self._first, self._last = products[:-1], products[-1]

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O] for activations [E * L, I]."""
        out = x.new_zeros(x.shape[0], self._out_grid[0] * self._out_grid[1])
        self.add_to(out, x)
        return out

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out`` [E * L, O], in place."""
        if x.shape[0] == self._num_entries:
            self._add_single_rows(out, x)
        else:
            self._add_many_rows(out, x)

    def _add_single_rows(self, out: Tensor, x: Tensor) -> None:
        """Add for one row of each adapter, where left and right need no swap of axes."""
        grid = x.view(self._num_entries, *self._grid)  # [E, I1, I2]
        for step in self._first:
            left, right = (step.matrix, grid) if step.is_left else (grid, step.matrix)
            grid = torch.bmm(left, right)
        step = self._last
        left, right = (step.matrix, grid) if step.is_left else (grid, step.matrix)
        out.view(self._num_entries, *self._out_grid).baddbmm_(left, right, alpha=self._scale)

    def _add_many_rows(self, out: Tensor, x: Tensor) -> None:
        """Add for L rows of each adapter."""
        num_rows = x.shape[0] // self._num_entries
        grid = x.view(self._num_entries, num_rows, *self._grid)  # [E, L, I1, I2]
        rows_first = True
        for step in self._first:
            if step.is_left:
                grid = self._from_left(grid if not rows_first else grid.transpose(1, 2), step)
                rows_first = False
            else:
                grid = self._from_right(grid, step)
        self._add_last(out, grid, rows_first=rows_first)

    def _add_last(self, out: Tensor, grid: Tensor, *, rows_first: bool) -> None:
        if self._last.is_left:
            grid = self._from_left(grid if not rows_first else grid.transpose(1, 2), self._last)
            target = out.view(self._num_entries, -1, *self._out_grid).transpose(1, 2)
            target.add_(grid, alpha=self._scale)  # [E, O1, L, O2]
            return
        grid = grid if rows_first else grid.transpose(1, 2)  # [E, L, O1, J]
        target = out.view(self._num_entries, -1, self._out_grid[1])  # [E, L * O1, O2]
        target.baddbmm_(grid.flatten(1, 2), self._last.matrix, alpha=self._scale)

    @staticmethod
    def _from_left(grid: Tensor, step: _Product) -> Tensor:
        """Return ``matrix @ grid`` for a grid [E, J1, L, J2]."""
        product = torch.bmm(step.matrix, grid.flatten(2))  # [E, out, L * J2]
        return product.view(grid.shape[0], step.size, *grid.shape[2:])

    @staticmethod
    def _from_right(grid: Tensor, step: _Product) -> Tensor:
        """Return ``grid @ matrix`` for a grid [E, A, B, J2] with its other axes in any order."""
        product = torch.bmm(grid.flatten(1, 2), step.matrix)  # [E, A * B, out]
        return product.view(*grid.shape[:3], step.size)


class BatchedHadamard:
    """The LoHa deltas of E adapters for one module, formed anew at each use."""

    def __init__(self, weights: HadamardWeights) -> None:
        self._weights = weights
        self._num_entries = weights.left.a.shape[0]

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O] for activations [E * L, I]."""
        delta = delta_weight(self._weights, x.dtype)  # [E, O, I]
        return torch.bmm(x.view(self._num_entries, -1, x.shape[-1]), delta.mT).flatten(0, 1)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out`` [E * L, O], in place."""
        out.add_(self.product(x))


def batched(weights: DeltaWeights) -> BatchedDelta:
    """Return a group's delta, factors [E, ...], ready to be applied."""
    if isinstance(weights, LokrWeights):
        return BatchedLokr(weights)
    assert isinstance(weights, HadamardWeights)  # what is dense is not banked
    return BatchedHadamard(weights)

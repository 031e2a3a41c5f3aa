"""Batched products over adapters of one layout: the fast copy of ``torch_ops.delta_linear``.

A group is E adapters side by side, each with L rows. Products from the right take the grid as it
is; a product from the left wants the grid's first axis in front of the rows, so the axes are
swapped then and swapped back at the end; in the cheapest order the grid is smallest there.
"""

from math import prod
from typing import Protocol

import torch
from torch import Tensor

from lokr_core.ops.contraction import Side, Step, cheapest_steps
from lokr_core.weights import (
    DeltaWeights,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    TuckerFactor,
)


class BatchedDelta(Protocol):
    """A group's delta of one module, ready to be applied."""

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O, ...] for activations [E * L, ...]."""
        ...

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out`` [E * L, O, ...], in place."""
        ...


class BatchedLokr:
    """The Kronecker deltas of E adapters for one module."""

    def __init__(self, weights: LokrWeights) -> None:
        steps = cheapest_steps(weights)
        num_entries = steps[0].matrix.shape[0]
        self._grid = num_entries, weights.w1.shape[1], weights.w2.shape[1]
        self._out_grid = num_entries, weights.w1.shape[0], weights.w2.shape[0]
        self._num_single = prod(self._grid)  # elements of one row of each adapter
        products = [_turned(step) for step in steps]
        is_left, matrix = products.pop()
        if weights.scale != 1:
            matrix = weights.scale * matrix
        self._first = products
        self._ends_left, self._last = is_left, matrix

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O] for activations [E * L, I]."""
        out = x.new_zeros(x.shape[0], self._out_grid[1] * self._out_grid[2])
        self.add_to(out, x)
        return out

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out``, in place.

        Args:
            out: E * L rows of O in any shape, contiguous.
            x: As many rows of I in any shape.
        """
        if x.numel() == self._num_single:
            self._add_single_rows(out, x)
        else:
            self._add_many_rows(out, x)

    def _add_single_rows(self, out: Tensor, x: Tensor) -> None:
        """Add for one row of each adapter, where left and right need no swap of axes."""
        grid = x.reshape(self._grid)  # [E, I1, I2]
        for is_left, matrix in self._first:
            grid = torch.bmm(matrix, grid) if is_left else torch.bmm(grid, matrix)
        target = out.view(self._out_grid)
        if self._ends_left:
            target.baddbmm_(self._last, grid)
        else:
            target.baddbmm_(grid, self._last)

    def _add_many_rows(self, out: Tensor, x: Tensor) -> None:
        """Add for L rows of each adapter."""
        num_entries, rows, cols = self._grid
        grid = x.reshape(num_entries, -1, rows, cols)  # [E, L, I1, I2]
        rows_first = True
        for is_left, matrix in self._first:
            if is_left:
                grid = _from_left(grid.transpose(1, 2) if rows_first else grid, matrix)
                rows_first = False
            else:
                grid = _from_right(grid, matrix)
        self._add_last(out, grid, rows_first=rows_first)

    def _add_last(self, out: Tensor, grid: Tensor, *, rows_first: bool) -> None:
        num_entries, rows, cols = self._out_grid
        if self._ends_left:
            grid = _from_left(grid.transpose(1, 2) if rows_first else grid, self._last)
            out.view(num_entries, -1, rows, cols).transpose(1, 2).add_(grid)  # [E, O1, L, O2]
            return
        grid = grid if rows_first else grid.transpose(1, 2)  # [E, L, O1, J]
        out.view(num_entries, -1, cols).baddbmm_(grid.flatten(1, 2), self._last)


def _turned(step: Step) -> tuple[bool, Tensor]:
    """Return whether a step is from the left, and its matrix so that it multiplies as it is."""
    if step.side is Side.LEFT:
        return True, step.matrix  # [E, out, in]
    return False, step.matrix.mT  # [E, in, out]


def _from_left(grid: Tensor, matrix: Tensor) -> Tensor:
    """Return ``matrix @ grid`` for a grid [E, J1, L, J2]."""
    product = torch.bmm(matrix, grid.flatten(2))  # [E, out, L * J2]
    return product.view(*product.shape[:2], *grid.shape[2:])


def _from_right(grid: Tensor, matrix: Tensor) -> Tensor:
    """Return ``grid @ matrix`` for a grid [E, A, B, J2] with its other axes in any order."""
    product = torch.bmm(grid.flatten(1, 2), matrix)  # [E, A * B, out]
    return product.view(*grid.shape[:3], -1)


class BatchedHadamard:
    """The LoHa deltas of E adapters for one module, formed anew at each use, one at a time."""

    def __init__(self, weights: HadamardWeights) -> None:
        self._left, self._right = _entries(weights.left), _entries(weights.right)
        self._scale = weights.scale

    def product(self, x: Tensor) -> Tensor:
        """Return the delta's output [E * L, O] for activations [E * L, I]."""
        parts = []
        by_entry = x.view(len(self._left), -1, x.shape[-1])
        for rows, left, right in zip(by_entry, self._left, self._right, strict=True):
            delta = left.dense().mul_(right.dense())  # [O, I]
            parts.append(rows @ delta.mT)
        out = torch.cat(parts)
        return out if self._scale == 1 else out.mul_(self._scale)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the delta's output to ``out`` [E * L, O], in place."""
        out.add_(self.product(x.reshape(-1, x.shape[-1])).view_as(out))


def _entries(factor: LowRankFactor | TuckerFactor) -> list[LowRankFactor]:
    """Return the factor of each of E adapters; only a convolution has a core."""
    assert isinstance(factor, LowRankFactor)
    return [LowRankFactor(a=a, b=b) for a, b in zip(factor.a, factor.b, strict=True)]


def batched(weights: DeltaWeights) -> BatchedDelta:
    """Return a group's delta, factors [E, ...], ready to be applied."""
    if isinstance(weights, LokrWeights):
        return BatchedLokr(weights)
    assert isinstance(weights, HadamardWeights)  # what is dense is not banked
    return BatchedHadamard(weights)

"""Batched convolutions over adapters of one layout: fast copies of ``torch_ops.delta_conv``.

A group is E adapters side by side, each with L samples. The kernel's products of all adapters run
as one convolution with E groups of channels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lokr_core.ops.contraction import Side, Step, cheapest_steps, grid_of, is_split
from lokr_core.ops.geometry import ConvGeometry
from lokr_core.ops.torch_ops import delta_weight
from lokr_core.weights import DeltaWeights, LokrWeights

FormDelta = Callable[[torch.dtype], Tensor]


class BatchedConvLokr:
    """The Kronecker deltas of E adapters for one convolution.

    Where the base has G groups of channels, w1 is taken apart into G blocks of rows, and all
    groups share w2.
    """

    def __init__(self, weights: LokrWeights, geometry: ConvGeometry) -> None:
        """Prepare the cheapest order; the rows of w1 must be a multiple of the groups."""
        self._geometry = geometry
        self._grid = geometry.groups, *grid_of(weights, geometry.taps)
        self._scale = weights.scale
        steps = cheapest_steps(weights, geometry.taps)
        self._num_entries = steps[0].matrix.shape[0]
        last_left = max(i for i, step in enumerate(steps) if step.side is Side.LEFT)
        self._steps = [
            (step, self._matrix(step, groups=geometry.groups if index == last_left else 1))
            for index, step in enumerate(steps)
        ]

    def _matrix(self, step: Step, groups: int) -> Tensor:
        """Return a step's matrix so that it fits the grid that it multiplies."""
        matrix = step.matrix
        if step.side is Side.LEFT:
            blocks: Tensor = matrix.unflatten(1, (groups, -1))  # [E, G, out, in]
            return blocks[:, None]
        if self._is_product(step):
            return matrix[:, None, None, None]  # [E, 1, 1, 1, out, in]
        return matrix.reshape(-1, step.num_inner, *self._geometry.kernel)  # [E * out, in, *k]

    def _is_product(self, step: Step) -> bool:
        """Whether a step from the right meets each position by itself."""
        return step.num_taps is None or self._geometry.is_pointwise

    def product(self, x: Tensor) -> Tensor:
        """Return the deltas' output [E * L, O, *S'] for activations [E * L, C, *S]."""
        size = x.shape[2:]
        grid = x.reshape(self._num_entries, -1, *self._grid, size.numel())  # [E, L, G, I1, I2, S]
        for step, matrix in self._steps:
            if step.side is Side.LEFT:
                product = matrix @ grid.flatten(4)  # [E, L, G, out, J2 * S]
                grid = product.unflatten(-1, grid.shape[4:])
            elif self._is_product(step):
                grid = matrix @ grid  # [E, L, G, J1, out, S]
            else:
                grid, size = self._convolved(grid, matrix, size)
        out = grid.reshape(x.shape[0], -1, *size)
        return out if self._scale == 1 else self._scale * out

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the deltas' output to ``out`` [E * L, O, *S'], in place."""
        out.add_(self.product(x))

    def _convolved(
        self, grid: Tensor, weight: Tensor, size: torch.Size
    ) -> tuple[Tensor, torch.Size]:
        """Return the grid convolved along its last two axes, and its new size."""
        num_entries, num_rows, groups, rows, cols, _ = grid.shape
        channels = grid.permute(1, 2, 3, 0, 4, 5).reshape(-1, num_entries * cols, *size)
        out = self._geometry.conv(channels, weight, num_entries)  # [L * G * J1, E * out, *S']
        split = out.reshape(num_rows, groups, rows, num_entries, weight.shape[0] // num_entries, -1)
        return split.permute(3, 0, 1, 2, 4, 5), out.shape[2:]


class BatchedConvDense:
    """Deltas of E adapters that are formed anew at each use."""

    def __init__(self, form: FormDelta, num_entries: int, geometry: ConvGeometry) -> None:
        self._form = form
        self._num_entries = num_entries
        self._geometry = geometry

    def product(self, x: Tensor) -> Tensor:
        """Return the deltas' output [E * L, O, *S'] for activations [E * L, C, *S]."""
        delta = self._form(x.dtype)  # [E, O, C]
        weight = delta.flatten(0, 1).unflatten(1, (-1, *self._geometry.kernel))
        by_entry = x.unflatten(0, (self._num_entries, -1)).transpose(0, 1)  # [L, E, C, *S]
        out = self._geometry.conv(
            by_entry.flatten(1, 2), weight, self._num_entries * self._geometry.groups
        )  # [L, E * O, *S']
        by_row: Tensor = out.unflatten(1, (self._num_entries, -1))
        return by_row.transpose(0, 1).flatten(0, 1)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the deltas' output to ``out`` [E * L, O, *S'], in place."""
        out.add_(self.product(x))


def batched_conv(
    weights: DeltaWeights, num_entries: int, geometry: ConvGeometry
) -> BatchedConvLokr | BatchedConvDense:
    """Return the deltas of E adapters for a convolution, ready to be applied."""
    if isinstance(weights, LokrWeights) and is_split(weights, geometry.taps):
        return BatchedConvLokr(weights, geometry)
    return BatchedConvDense(partial(delta_weight, weights), num_entries, geometry)

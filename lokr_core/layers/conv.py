"""ConvLayer: nn.Conv1d, Conv2d and Conv3d; rows are samples."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from lokr_core.layers.layer import (
    Forward,
    Gains,
    Placed,
    along_channels,
    is_whole,
    placed,
    term_matrix,
)
from lokr_core.layers.stand_in import stand_in
from lokr_core.ops.batched import BatchedDelta
from lokr_core.ops.batched_conv import BatchedConvDense, batched_conv
from lokr_core.ops.geometry import CONV_TYPES, ConvGeometry
from lokr_core.ops.torch_ops import delta_weight
from lokr_core.spec import ModuleSpec
from lokr_core.weights import Gain, GainAxis, ModuleWeights, Term


class ConvLayer:
    """A convolution of samples [N, C, *S]; an input without N is one sample."""

    def __init__(self, spec: ModuleSpec) -> None:
        assert isinstance(spec.module, CONV_TYPES)
        self.spec = spec
        self._geometry = ConvGeometry.of(spec.module)
        self._num_dims = 2 + len(self._geometry.kernel)
        self._num_outputs = spec.out_features

    def count(self, x: Tensor) -> tuple[int, int]:
        """Return the number of samples, twice."""
        num_samples = x.shape[0] if x.ndim == self._num_dims else 1
        return num_samples, num_samples

    def input_rows(self, x: Tensor) -> Tensor:
        """Return an input as samples."""
        return x if x.ndim == self._num_dims else x[None]

    def output_rows(self, out: Tensor) -> Tensor:
        """Return an output as samples [N, O, *S']."""
        return self.input_rows(out)

    def from_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return samples, or the one that ``x`` is."""
        return rows if x.ndim == self._num_dims else rows[0]

    def bind(self, weight: Tensor, bias: Tensor | None) -> Forward:
        """Return the convolution with other parameters."""
        return stand_in(self.spec.module, {"weight": weight, "bias": bias})

    def deltas(self, weights: ModuleWeights, num_entries: int) -> Sequence[BatchedDelta]:
        """Return what the banked factors add."""
        return [self._delta(term, num_entries) for term in weights.terms]

    def _delta(self, term: Term, num_entries: int) -> BatchedDelta:
        if is_whole(term, self._num_outputs):
            return batched_conv(term.delta, num_entries, self._geometry)
        if self._geometry.groups > 1:  # an output's place says which inputs it sees
            return BatchedConvDense(partial(self._whole, term), num_entries, self._geometry)
        return Placed(batched_conv(term.delta, num_entries, self._geometry), term)

    def _whole(self, term: Term, dtype: torch.dtype) -> Tensor:
        """Return a term as a delta of all outputs, [..., O, C]."""
        delta = delta_weight(term.delta, dtype)
        rows = delta if term.rows is None else delta[..., term.rows.start : term.rows.stop, :]
        whole = delta.new_zeros(*delta.shape[:-2], self._num_outputs, delta.shape[-1])
        whole[..., term.outputs.start : term.outputs.stop, :] = rows
        return whole

    def add_dense(self, out: Tensor, x: Tensor, term: Term, weight: float) -> None:
        """Add ``weight`` times a term without factors to samples, in place."""
        groups = self._geometry.groups
        if groups > 1 and not is_whole(term, self._num_outputs):
            matrix, part, scale = self._whole(term, x.dtype), out, 1.0
        else:
            matrix, part = term_matrix(term).to(x.dtype), placed(out, term)
            scale = term.delta.scale
        kernel = matrix.unflatten(1, (-1, *self._geometry.kernel))
        part.add_(self._geometry.conv(x, kernel, groups), alpha=weight * scale)

    def gains(self, gain: Gain, x: Tensor) -> Gains:
        """Return the gains of E entries; groups of channels share those of their inputs."""
        if gain.axis is GainAxis.OUTPUT:
            return Gains(outputs=along_channels(gain.values, x.ndim))
        values = gain.values.repeat(1, self._geometry.groups)
        return Gains(inputs=along_channels(values, x.ndim))

"""NormLayer: LayerNorm and RMS norms, whose rows are tokens, and GroupNorm, whose are samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lokr_core.errors import UnsupportedModuleError
from lokr_core.layers.layer import Forward, Gains, along_channels, term_matrix
from lokr_core.layers.stand_in import stand_in
from lokr_core.ops.batched import BatchedDelta
from lokr_core.spec import ModuleSpec
from lokr_core.weights import Gain, ModuleWeights, Term


class NormLayer:
    """A norm, which is a scaled copy of its input times a weight (or 1 + weight), plus a bias."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec
        self._has_samples = isinstance(spec.module, nn.GroupNorm)
        self._has_bias = "bias" in dict(spec.module.named_parameters())

    def count(self, x: Tensor) -> tuple[int, int]:
        """Return the leading size of an input, and its number of rows."""
        if self._has_samples:
            return x.shape[0], x.shape[0]
        return x.shape[0] if x.ndim > 1 else 1, x.numel() // x.shape[-1]

    def input_rows(self, x: Tensor) -> Tensor:
        """Return an input as rows [N, C], or samples [N, C, ...]."""
        return x if self._has_samples else x.reshape(-1, x.shape[-1])

    def output_rows(self, out: Tensor) -> Tensor:
        """Return an output in the same way."""
        return self.input_rows(out)

    def from_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return rows in the shape of the input."""
        return rows.view(x.shape)

    def bind(self, weight: Tensor, bias: Tensor | None) -> Forward:
        """Return the norm with other parameters."""
        if self._has_bias or bias is None:
            return stand_in(self.spec.module, {"weight": weight, "bias": bias})
        forward = stand_in(self.spec.module, {"weight": weight})
        return lambda x: forward(x) + bias  # channels are last: a GroupNorm has a bias

    def normalised(self, x: Tensor) -> Tensor:
        """Return what the weight multiplies, in the dtype of x."""
        one = torch.ones(self.spec.out_features, dtype=x.dtype, device=x.device)
        with_one = self.bind(one, None)(x)
        if type(self.spec.module).forward in (nn.LayerNorm.forward, nn.GroupNorm.forward):
            return with_one
        return with_one - self.bind(torch.zeros_like(one), None)(x)  # some multiply by 1 + weight

    def deltas(self, weights: ModuleWeights, num_entries: int) -> Sequence[BatchedDelta]:
        """Return what the banked vector adds."""
        return [] if weights.vector is None else [_Vector(weights.vector, self)]

    def add_dense(self, out: Tensor, x: Tensor, term: Term, weight: float) -> None:
        """Add ``weight`` times a term without factors, one column, in place."""
        column = term_matrix(term)[:, 0].to(x.dtype)[None]
        product = self.normalised(x) * along_channels(column, x.ndim)[0]
        out.add_(product, alpha=weight * term.delta.scale)

    def gains(self, gain: Gain, x: Tensor) -> Gains:
        """Refuse a gain: what a norm multiplies is no product that it could scale.

        Raises:
            UnsupportedModuleError: Always.
        """
        raise UnsupportedModuleError(self.spec.path, "a norm has no DoRA magnitude")


class _Vector:
    """The vectors of E adapters that are added to a norm's weight."""

    def __init__(self, vectors: Tensor, layer: NormLayer) -> None:
        self._vectors = vectors  # [E, C]
        self._layer = layer

    def product(self, x: Tensor) -> Tensor:
        """Return the change of rows [E * L, C, ...]."""
        normalised = self._layer.normalised(x)
        by_entry: Tensor = normalised.unflatten(0, (self._vectors.shape[0], -1))
        return (by_entry * along_channels(self._vectors, x.ndim)).flatten(0, 1)

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the change to ``out`` [E * L, C, ...], in place."""
        out.add_(self.product(x))

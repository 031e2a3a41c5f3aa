"""LinearLayer: nn.Linear, quantised or not, and transformers' Conv1D; rows are tokens."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import functional

from lokr_core.layers.layer import (
    Forward,
    Gains,
    Placed,
    along_channels,
    is_whole,
    placed,
    term_matrix,
)
from lokr_core.ops.batched import BatchedDelta, batched
from lokr_core.spec import ModuleKind, ModuleSpec
from lokr_core.weights import Gain, GainAxis, ModuleWeights, Term


class LinearLayer:
    """A product of rows [N, I] with a matrix."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec
        self._num_outputs = spec.out_features

    def count(self, x: Tensor) -> tuple[int, int]:
        """Return the leading size of an input [..., I], and its number of rows."""
        return x.shape[0] if x.ndim > 1 else 1, x.numel() // x.shape[-1]

    def input_rows(self, x: Tensor) -> Tensor:
        """Return an input as rows [N, I]."""
        return x.reshape(-1, x.shape[-1])

    def output_rows(self, out: Tensor) -> Tensor:
        """Return an output as rows [N, O]."""
        return out.reshape(-1, out.shape[-1])

    def from_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return rows [N, O] as [..., O]."""
        return rows.view(*x.shape[:-1], rows.shape[-1])

    def bind(self, weight: Tensor, bias: Tensor | None) -> Forward:
        """Return the product with another matrix."""
        matrix = weight.mT if self.spec.kind is ModuleKind.CONV1D else weight
        return partial(functional.linear, weight=matrix, bias=bias)

    def deltas(self, weights: ModuleWeights, num_entries: int) -> Sequence[BatchedDelta]:
        """Return what the banked factors add."""
        return [
            batched(term.delta)
            if is_whole(term, self._num_outputs)
            else Placed(batched(term.delta), term)
            for term in weights.terms
        ]

    def add_dense(self, out: Tensor, x: Tensor, term: Term, weight: float) -> None:
        """Add ``weight`` times a term without factors to rows, in place."""
        product = functional.linear(x, term_matrix(term).to(x.dtype))
        placed(out, term).add_(product, alpha=weight * term.delta.scale)

    def gains(self, gain: Gain, x: Tensor) -> Gains:
        """Return the gains of E entries."""
        values = along_channels(gain.values, x.ndim)
        is_input = gain.axis is GainAxis.INPUT
        return Gains(inputs=values) if is_input else Gains(outputs=values)

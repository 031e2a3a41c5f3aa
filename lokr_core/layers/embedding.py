"""EmbeddingLayer: nn.Embedding; rows are token ids, and of a delta only their rows are formed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lokr_core.layers.layer import Forward, Gains, along_channels, term_matrix
from lokr_core.layers.stand_in import stand_in
from lokr_core.ops.batched import BatchedDelta
from lokr_core.ops.batched_lookup import BatchedLookup
from lokr_core.spec import ModuleSpec
from lokr_core.weights import Gain, GainAxis, ModuleWeights, Term


class EmbeddingLayer:
    """Rows of a table [V, D], which a subclass may scale."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec
        self._is_plain = type(spec.module).forward is nn.Embedding.forward

    def count(self, x: Tensor) -> tuple[int, int]:
        """Return the leading size of ids [...], and their number."""
        return x.shape[0] if x.ndim else 1, x.numel()

    def input_rows(self, x: Tensor) -> Tensor:
        """Return ids as [N]."""
        return x.reshape(-1)

    def output_rows(self, out: Tensor) -> Tensor:
        """Return an output as rows [N, D]."""
        return out.reshape(-1, out.shape[-1])

    def from_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return rows [N, D] as [..., D]."""
        return rows.view(*x.shape, rows.shape[-1])

    def bind(self, weight: Tensor, bias: Tensor | None) -> Forward:
        """Return the look-up in another table; a padding id matters to training alone."""
        assert bias is None, "an embedding has no bias"
        return stand_in(self.spec.module, {"weight": weight}, padding_idx=None)

    def deltas(self, weights: ModuleWeights, num_entries: int) -> Sequence[BatchedDelta]:
        """Return what the banked factors add."""
        lookups = [BatchedLookup(term) for term in weights.terms]
        return lookups if self._is_plain else [_Finished(lookup, self) for lookup in lookups]

    def finished(self, rows: Tensor) -> Tensor:
        """Return rows of a table [N, D] as the module gives them."""
        if self._is_plain:
            return rows
        return self.bind(rows, None)(torch.arange(len(rows), device=rows.device))

    def add_dense(self, out: Tensor, x: Tensor, term: Term, weight: float) -> None:
        """Add ``weight`` times rows of a table without factors, in place."""
        start, stop = term.outputs.start, term.outputs.stop
        is_inside = (x >= start) & (x < stop)
        rows = term_matrix(term)[torch.where(is_inside, x - start, 0)].to(out.dtype)
        rows = torch.where(is_inside[:, None], rows, rows.new_zeros(()))
        out.add_(self.finished(rows), alpha=weight * term.delta.scale)

    def gains(self, gain: Gain, x: Tensor) -> Gains:
        """Return the gains of E entries: one for each token, or for each column of the table."""
        if gain.axis is GainAxis.INPUT:
            return Gains(outputs=along_channels(gain.values, 2))
        ids = x.view(gain.values.shape[0], -1)  # [E, L]
        return Gains(outputs=gain.values.gather(1, ids)[..., None])


class _Finished:
    """A look-up, as a subclass of nn.Embedding scales it."""

    def __init__(self, lookup: BatchedLookup, layer: EmbeddingLayer) -> None:
        self._lookup = lookup
        self._layer = layer

    def product(self, x: Tensor) -> Tensor:
        """Return the rows [E * L, D] for ids [E * L]."""
        return self._layer.finished(self._lookup.product(x))

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the rows to ``out`` [E * L, D], in place."""
        out.add_(self.product(x))

"""Layer: what routing has to know of a kind of module; one small class for each kind.

A layer's rows are what mixes are given to: tokens of a linear module, samples of a convolution. As
rows, inputs are [N, channels, ...] (ids [N]) and outputs [N, channels, ...].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lokr_core.ops.batched import BatchedDelta
from lokr_core.spec import ModuleSpec
from lokr_core.weights import DenseWeights, Gain, ModuleWeights, Term

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gains:
    """DoRA's factors of E entries, which broadcast over rows [E, L, channels, ...]."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None


class Layer(Protocol):
    """One module as its rows see it."""

    @property
    def spec(self) -> ModuleSpec:
        """The module."""
        ...

    def count(self, x: Tensor) -> tuple[int, int]:
        """Return the leading size of an input, and its number of rows."""
        ...

    def input_rows(self, x: Tensor) -> Tensor:
        """Return an input as rows."""
        ...

    def output_rows(self, out: Tensor) -> Tensor:
        """Return an output as rows, a view where it can be."""
        ...

    def from_rows(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return rows of outputs in the shape that belongs to the input ``x``."""
        ...

    def bind(self, weight: Tensor, bias: Tensor | None) -> Forward:
        """Return the module's forward with other parameters, the weight in the base's layout.

        It takes inputs of any shape that the module takes, rows among them.
        """
        ...

    def deltas(self, weights: ModuleWeights, num_entries: int) -> Sequence[BatchedDelta]:
        """Return what the banked factors [E, ...] of E entries add to rows, without gain or bias.

        Args:
            weights: Terms and vector of the module.
            num_entries: E.
        """
        ...

    def add_dense(self, out: Tensor, x: Tensor, term: Term, weight: float) -> None:
        """Add ``weight`` times a term without factors to output rows, in place."""
        ...

    def gains(self, gain: Gain, x: Tensor) -> Gains:
        """Return the gains of E entries for input rows ``x`` [E * L, ...]."""
        ...


def along_channels(values: Tensor, ndim: int) -> Tensor:
    """Return values [E, channels] so that they broadcast over rows [E, L, channels, ...].

    Args:
        values: One for each channel.
        ndim: Dimensions of the rows [E * L, channels, ...].
    """
    return values.view(values.shape[0], 1, values.shape[1], *(1,) * (ndim - 2))


class Placed:
    """Some outputs of a delta, added to some outputs of the module."""

    def __init__(self, delta: BatchedDelta, term: Term) -> None:
        self._delta = delta
        self._term = term

    def add_to(self, out: Tensor, x: Tensor) -> None:
        """Add the outputs to ``out`` [E * L, O, ...], in place."""
        placed(out, self._term).add_(self.product(x))

    def product(self, x: Tensor) -> Tensor:
        """Return the outputs that the term takes of the delta's."""
        product, rows = self._delta.product(x), self._term.rows
        return product if rows is None else product.narrow(1, rows.start, len(rows))


def placed(out: Tensor, term: Term) -> Tensor:
    """Return the outputs that a term changes, a view of ``out`` [N, O, ...]."""
    return out.narrow(1, term.outputs.start, len(term.outputs))


def term_matrix(term: Term) -> Tensor:
    """Return the outputs that a term without factors takes of its matrix, without its scale."""
    assert isinstance(term.delta, DenseWeights)
    matrix = term.delta.matrix
    return matrix if term.rows is None else matrix[term.rows.start : term.rows.stop]


def is_whole(term: Term, num_outputs: int) -> bool:
    """Whether a term is a delta of all outputs of a module."""
    return term.rows is None and term.at == 0 and term.delta.shape[0] == num_outputs

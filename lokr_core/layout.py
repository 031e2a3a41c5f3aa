"""Where the factors of an adapter lie in its one flat buffer; shared by adapters of equal shape."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Factor,
    FullFactor,
    Gain,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
    Replacement,
    Rows,
    Term,
    TuckerFactor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """A tensor's place in a flat buffer; offset and size count elements."""

    offset: int
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return torch.Size(self.shape).numel()

    def view(self, buffer: Tensor) -> Tensor:
        """Return the tensor as a view of ``buffer`` [..., num_elements of the layout]."""
        flat = buffer.narrow(-1, self.offset, self.num_elements)
        return flat.view(*flat.shape[:-1], *self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorSlots:
    """Slots of one factor: one for a full factor, two for a low-rank one, three with a core."""

    tensors: tuple[TensorSlot, ...]

    def view(self, buffer: Tensor) -> Factor:
        """Return the factor as views of ``buffer``."""
        views = [slot.view(buffer) for slot in self.tensors]
        match len(views):
            case 1:
                return FullFactor(matrix=views[0])
            case 2:
                return LowRankFactor(a=views[0], b=views[1])
            case _:
                return TuckerFactor(a=views[0], b=views[1], core=views[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class LokrSlots:
    """Slots of ``w1 ⊗ w2``."""

    w1: FactorSlots
    w2: FactorSlots

    def view(self, buffer: Tensor, scale: float) -> DeltaWeights:
        """Return the delta as views of ``buffer``."""
        return LokrWeights(w1=self.w1.view(buffer), w2=self.w2.view(buffer), scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class HadamardSlots:
    """Slots of ``left ⊙ right``."""

    left: FactorSlots
    right: FactorSlots

    def view(self, buffer: Tensor, scale: float) -> DeltaWeights:
        """Return the delta as views of ``buffer``."""
        left, right = self.left.view(buffer), self.right.view(buffer)
        assert not isinstance(left, FullFactor)
        assert not isinstance(right, FullFactor)
        return HadamardWeights(left=left, right=right, scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSlots:
    """Slot of a delta without factors."""

    matrix: TensorSlot

    def view(self, buffer: Tensor, scale: float) -> DeltaWeights:
        """Return the delta as a view of ``buffer``."""
        return DenseWeights(matrix=self.matrix.view(buffer), scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class TermSlots:
    """Slots of a term."""

    delta: LokrSlots | HadamardSlots | DenseSlots
    rows: Rows | None
    at: int

    @property
    def is_dense(self) -> bool:
        """Whether the delta has no factors."""
        return isinstance(self.delta, DenseSlots)

    def view(self, buffer: Tensor, scale: float) -> Term:
        """Return the term as views of ``buffer``."""
        return Term(delta=self.delta.view(buffer, scale), rows=self.rows, at=self.at)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainSlot:
    """Slot of a DoRA gain; in a buffer of half precision it is a sum of several, [parts, n]."""

    values: TensorSlot
    axis: GainAxis

    def view(self, buffer: Tensor) -> Gain:
        """Return the gain, as a view of ``buffer`` unless it has parts."""
        values = self.values.view(buffer)
        if len(self.values.shape) > 1:
            values = values.to(torch.promote_types(values.dtype, torch.float32)).sum(-2)
        return Gain(values=values, axis=self.axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacementSlots:
    """Slots of parameters that take the place of the base's."""

    weight: TensorSlot | None
    bias: TensorSlot | None

    def view(self, buffer: Tensor) -> Replacement:
        """Return the parameters as views of ``buffer``."""
        return Replacement(weight=_view(self.weight, buffer), bias=_view(self.bias, buffer))


def _view(slot: TensorSlot | None, buffer: Tensor) -> Tensor | None:
    return None if slot is None else slot.view(buffer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleLayout:
    """Slots of what an adapter does to one module.

    Its entries are what a weight is folded into: the terms, the vector and the bias, in this
    order. Each has a scale of its own, and elements in the leading section, a dense term none.
    """

    terms: tuple[TermSlots, ...]
    gain: GainSlot | None
    vector: TensorSlot | None
    bias: TensorSlot | None
    replacement: ReplacementSlots | None
    leading_sizes: tuple[int, ...]  # elements of each entry in the leading section

    @property
    def has_bank(self) -> bool:
        """Whether part of it lies in the banked section."""
        is_factored = any(not term.is_dense for term in self.terms)
        return is_factored or self.vector is not None or self.bias is not None

    @property
    def replaces_weight(self) -> bool:
        """Whether it takes the place of the base's weight."""
        return self.replacement is not None and self.replacement.weight is not None

    @property
    def has_dense(self) -> bool:
        """Whether part of it lies outside the banked section."""
        return self.replacement is not None or any(term.is_dense for term in self.terms)

    def view(self, buffer: Tensor, scales: Sequence[float]) -> ModuleWeights:
        """Return the module's weights as views of ``buffer``, with one scale for each entry.

        Vector and bias are views where their scale is 1, as it is unless a weight was folded in.
        """
        return ModuleWeights(
            terms=tuple(
                term.view(buffer, scale) for term, scale in zip(self.terms, scales, strict=False)
            ),
            gain=None if self.gain is None else self.gain.view(buffer),
            vector=_view(self.vector, buffer),
            bias=_view(self.bias, buffer),
            replacement=None if self.replacement is None else self.replacement.view(buffer),
        )

    def banked(self, rows: Tensor) -> ModuleWeights:
        """Return what lies in the banked section, as views of ``rows`` [..., num_banked].

        Scales and weights are folded in.
        """
        return ModuleWeights(
            terms=tuple(term.view(rows, 1.0) for term in self.terms if not term.is_dense),
            gain=None if self.gain is None else self.gain.view(rows),
            vector=_view(self.vector, rows),
            bias=_view(self.bias, rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class AdapterLayout:
    """Slots of a whole adapter, by module path.

    The leading section comes first: of each entry the small tensor that scale and weight are
    folded into, with one multiplication over ``[0, num_leading)``. The banked section ends at
    ``num_banked``; behind it lies what has no factors, which is large and is not copied.
    """

    modules: Mapping[str, ModuleLayout] = field(hash=False)
    num_elements: int
    num_leading: int
    num_banked: int

    def __hash__(self) -> int:
        """Hash what tells layouts apart cheaply; equality still compares every slot."""
        return hash((self.num_elements, self.num_leading, self.num_banked, len(self.modules)))

    @property
    def leading_sizes(self) -> list[int]:
        """Elements of every entry in the leading section, module by module."""
        return [size for slots in self.modules.values() for size in slots.leading_sizes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedFactors:
    """All factors of an adapter in one buffer, with the layout that finds them in it."""

    layout: AdapterLayout
    buffer: Tensor  # [layout.num_elements]
    scales: Tensor  # [entries of all modules], float64


def factor_tensors(factor: Factor) -> tuple[Tensor, ...]:
    """Return the tensors of a factor, the one that a scale is folded into first."""
    match factor:
        case FullFactor():
            return (factor.matrix,)
        case LowRankFactor():
            return factor.a, factor.b
        case TuckerFactor():
            return factor.a, factor.b, factor.core


def delta_factors(delta: DeltaWeights) -> tuple[Factor, ...]:
    """Return the factors of a delta; none if it has none."""
    match delta:
        case LokrWeights():
            return delta.w1, delta.w2
        case HadamardWeights():
            return delta.left, delta.right
        case DenseWeights():
            return ()


def tensors_of(weights: ModuleWeights) -> Iterator[Tensor]:
    """Yield the tensors of a module's weights, in one order for all weights of one layout."""
    for term in weights.terms:
        if isinstance(term.delta, DenseWeights):
            yield term.delta.matrix
        for factor in delta_factors(term.delta):
            yield from factor_tensors(factor)
    replaced = weights.replacement
    gain = None if weights.gain is None else weights.gain.values
    given = (gain, weights.vector, weights.bias)
    others = () if replaced is None else (replaced.weight, replaced.bias)
    yield from (tensor for tensor in (*given, *others) if tensor is not None)

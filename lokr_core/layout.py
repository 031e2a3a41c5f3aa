"""Where the factors of an adapter lie in its one flat buffer; shared by adapters of equal shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import torch
from torch import Tensor

from lokr_core.weights import (
    DeltaWeights,
    Factor,
    FullFactor,
    Gain,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
)

ALIGNMENT_BYTES = 16  # what vectorised loads of the kernels need


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
    """Slots of one factor: one for a full factor, two for a low-rank one."""

    tensors: tuple[TensorSlot] | tuple[TensorSlot, TensorSlot]

    def view(self, buffer: Tensor) -> Factor:
        """Return the factor as views of ``buffer``."""
        if len(self.tensors) == 1:
            return FullFactor(matrix=self.tensors[0].view(buffer))
        return LowRankFactor(a=self.tensors[0].view(buffer), b=self.tensors[1].view(buffer))


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
        assert isinstance(left, LowRankFactor)
        assert isinstance(right, LowRankFactor)
        return HadamardWeights(left=left, right=right, scale=scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class GainSlot:
    """Slot of a DoRA gain."""

    values: TensorSlot
    axis: GainAxis

    def view(self, buffer: Tensor) -> Gain:
        """Return the gain as a view of ``buffer``."""
        return Gain(values=self.values.view(buffer), axis=self.axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleLayout:
    """Slots of what an adapter does to one module."""

    delta: LokrSlots | HadamardSlots
    gain: GainSlot | None
    leading_size: int  # elements from this module's leading factor to the next module's

    @property
    def leading(self) -> TensorSlot:
        """The small factor that scale and weight are folded into."""
        first = self.delta.w1 if isinstance(self.delta, LokrSlots) else self.delta.left
        return first.tensors[0]

    def view(self, buffer: Tensor, scale: float) -> ModuleWeights:
        """Return the module's weights as views of ``buffer``."""
        gain = self.gain.view(buffer) if self.gain is not None else None
        return ModuleWeights(delta=self.delta.view(buffer, scale), gain=gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """Slots of a whole adapter, by module path.

    The leading factors of all modules come first, in the order of ``modules``, so that scales
    and weights are folded in with one multiplication over ``[0, num_leading)``.
    """

    modules: Mapping[str, ModuleLayout] = field(hash=False)
    num_elements: int
    num_leading: int

    def __hash__(self) -> int:
        """Hash what tells layouts apart cheaply; equality still compares every slot."""
        return hash((self.num_elements, self.num_leading, len(self.modules)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedFactors:
    """All factors of an adapter in one buffer, with the layout that finds them in it."""

    layout: AdapterLayout
    buffer: Tensor  # [layout.num_elements]
    scales: Tensor  # [len(layout.modules)], float64


@dataclass(slots=True)
class _Packer:
    """Hands out aligned slots, the leading factors' first."""

    alignment: int  # in elements
    tensors: list[tuple[TensorSlot, Tensor]] = field(default_factory=list)
    end: int = 0

    def place(self, tensor: Tensor) -> TensorSlot:
        slot = TensorSlot(offset=self.end, shape=tuple(tensor.shape))
        self.tensors.append((slot, tensor))
        self.end += self.aligned(tensor.numel())
        return slot

    def aligned(self, num_elements: int) -> int:
        """Return the number of elements that a tensor takes up."""
        return -(-num_elements // self.alignment) * self.alignment


def _factor_tensors(factor: Factor) -> tuple[Tensor] | tuple[Tensor, Tensor]:
    match factor:
        case FullFactor():
            return (factor.matrix,)
        case LowRankFactor():
            return factor.a, factor.b
    assert_never(factor)


def _delta_factors(delta: DeltaWeights) -> tuple[Factor, Factor]:
    match delta:
        case LokrWeights():
            return delta.w1, delta.w2
        case HadamardWeights():
            return delta.left, delta.right
    assert_never(delta)


def tensors_of(weights: ModuleWeights) -> Iterator[Tensor]:
    """Yield the tensors of a module's weights, in one order for all weights of one layout."""
    for factor in _delta_factors(weights.delta):
        yield from _factor_tensors(factor)
    if weights.gain is not None:
        yield weights.gain.values


def _place_factor(packer: _Packer, factor: Factor, first: TensorSlot | None = None) -> FactorSlots:
    tensors = _factor_tensors(factor)
    head = first if first is not None else packer.place(tensors[0])
    if len(tensors) == 1:
        return FactorSlots(tensors=(head,))
    return FactorSlots(tensors=(head, packer.place(tensors[1])))


def _place_module(packer: _Packer, weights: ModuleWeights, leading: TensorSlot) -> ModuleLayout:
    first, second = _delta_factors(weights.delta)
    placed = _place_factor(packer, first, leading), _place_factor(packer, second)
    delta: LokrSlots | HadamardSlots
    if isinstance(weights.delta, LokrWeights):
        delta = LokrSlots(w1=placed[0], w2=placed[1])
    else:
        delta = HadamardSlots(left=placed[0], right=placed[1])
    gain = None
    if weights.gain is not None:
        gain = GainSlot(values=packer.place(weights.gain.values), axis=weights.gain.axis)
    return ModuleLayout(delta=delta, gain=gain, leading_size=packer.aligned(leading.num_elements))


def pack(modules: Mapping[str, ModuleWeights]) -> PackedFactors:
    """Copy the weights of all modules, by path, into one flat buffer.

    The buffer has the widest dtype among the tensors; modules are laid out in order of path, so
    adapters that change the same modules with equal shapes get equal layouts.
    """
    ordered = {path: modules[path] for path in sorted(modules)}
    tensors = [tensor for weights in ordered.values() for tensor in tensors_of(weights)]
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    packer = _Packer(alignment=ALIGNMENT_BYTES // min(ALIGNMENT_BYTES, dtype.itemsize))
    leading = {
        path: packer.place(_factor_tensors(_delta_factors(weights.delta)[0])[0])
        for path, weights in ordered.items()
    }
    num_leading = packer.end
    slots = {path: _place_module(packer, w, leading[path]) for path, w in ordered.items()}
    buffer = torch.zeros(packer.end, dtype=dtype)
    for slot, tensor in packer.tensors:
        slot.view(buffer).copy_(tensor)
    layout = AdapterLayout(modules=slots, num_elements=packer.end, num_leading=num_leading)
    scales = torch.tensor([w.delta.scale for w in ordered.values()], dtype=torch.float64)
    return PackedFactors(layout=layout, buffer=buffer, scales=scales)


def with_layout(packed: PackedFactors, layout: AdapterLayout) -> PackedFactors:
    """Return ``packed`` with an equal layout that other adapters hold already."""
    return replace(packed, layout=layout)

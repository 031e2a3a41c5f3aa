"""pack: the weights of an adapter's modules in one flat buffer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lokr_core.layout import (
    AdapterLayout,
    DenseSlots,
    FactorSlots,
    GainSlot,
    HadamardSlots,
    LokrSlots,
    ModuleLayout,
    PackedFactors,
    ReplacementSlots,
    TensorSlot,
    TermSlots,
    delta_factors,
    factor_tensors,
    tensors_of,
)
from lokr_core.weights import DenseWeights, LokrWeights, ModuleWeights, Term

ALIGNMENT_BYTES = 16  # what vectorised loads of the kernels need
_NUM_PARTS = 3  # of 8 bits in bfloat16, as many as float32 has


@dataclass(slots=True)
class _Packer:
    """Hands out aligned slots, one after the other."""

    dtype: torch.dtype  # of the buffer
    tensors: list[tuple[TensorSlot, Tensor]] = field(default_factory=list)
    end: int = 0

    def place(self, tensor: Tensor) -> TensorSlot:
        slot = TensorSlot(offset=self.end, shape=tuple(tensor.shape))
        self.tensors.append((slot, tensor))
        alignment = ALIGNMENT_BYTES // self.dtype.itemsize  # in elements
        self.end += -(-tensor.numel() // alignment) * alignment
        return slot

    def gain_parts(self, values: Tensor) -> Tensor:
        """Return a gain as it lies in the buffer."""
        if self.dtype.itemsize >= values.dtype.itemsize:
            return values
        return _parts(values, self.dtype)

    def place_some(self, tensor: Tensor | None) -> TensorSlot | None:
        return None if tensor is None else self.place(tensor)


@dataclass(slots=True)
class _Module:
    """The slots of one module, filled section by section."""

    weights: ModuleWeights
    leading: list[TensorSlot | None] = field(default_factory=list)  # of each term
    sizes: list[int] = field(default_factory=list)
    vector: TensorSlot | None = None
    bias: TensorSlot | None = None
    terms: list[TermSlots | None] = field(default_factory=list)
    gain: GainSlot | None = None

    def place_leading(self, packer: _Packer) -> None:
        """Place what scales and weights are folded into."""
        for term in self.weights.terms:
            start = packer.end
            factors = delta_factors(term.delta)
            self.leading.append(packer.place(factor_tensors(factors[0])[0]) if factors else None)
            self.sizes.append(packer.end - start)
        self.vector = self._place_entry(packer, self.weights.vector)
        self.bias = self._place_entry(packer, self.weights.bias)

    def _place_entry(self, packer: _Packer, tensor: Tensor | None) -> TensorSlot | None:
        if tensor is None:
            return None
        start = packer.end
        slot = packer.place(tensor)
        self.sizes.append(packer.end - start)
        return slot

    def place_banked(self, packer: _Packer) -> None:
        """Place the other factors and the gain."""
        for term, head in zip(self.weights.terms, self.leading, strict=True):
            self.terms.append(None if head is None else _place_factored(packer, term, head))
        if self.weights.gain is not None:
            values = packer.place(packer.gain_parts(self.weights.gain.values))
            self.gain = GainSlot(values=values, axis=self.weights.gain.axis)

    def place_dense(self, packer: _Packer) -> ModuleLayout:
        """Place what has no factors, and return the whole."""
        terms = tuple(
            slots if slots is not None else _place_dense(packer, term)
            for term, slots in zip(self.weights.terms, self.terms, strict=True)
        )
        replaced, slots = self.weights.replacement, None
        if replaced is not None:
            slots = ReplacementSlots(
                weight=packer.place_some(replaced.weight), bias=packer.place_some(replaced.bias)
            )
        return ModuleLayout(
            terms=terms,
            gain=self.gain,
            vector=self.vector,
            bias=self.bias,
            replacement=slots,
            leading_sizes=tuple(self.sizes),
        )

    @property
    def scales(self) -> list[float]:
        """The scale of each entry; vector and bias have none of their own."""
        scales = [term.delta.scale for term in self.weights.terms]
        return scales + [1.0] * (len(self.sizes) - len(scales))


def _place_factored(packer: _Packer, term: Term, head: TensorSlot) -> TermSlots:
    """Place the tensors of a term beside its leading one."""
    slots = []
    for index, factor in enumerate(delta_factors(term.delta)):
        first, *others = factor_tensors(factor)
        begin = head if index == 0 else packer.place(first)
        slots.append(FactorSlots(tensors=(begin, *map(packer.place, others))))
    first_slots, second_slots = slots
    delta: LokrSlots | HadamardSlots
    if isinstance(term.delta, LokrWeights):
        delta = LokrSlots(w1=first_slots, w2=second_slots)
    else:
        delta = HadamardSlots(left=first_slots, right=second_slots)
    return TermSlots(delta=delta, rows=term.rows, at=term.at)


def _place_dense(packer: _Packer, term: Term) -> TermSlots:
    assert isinstance(term.delta, DenseWeights)
    delta = DenseSlots(matrix=packer.place(term.delta.matrix))
    return TermSlots(delta=delta, rows=term.rows, at=term.at)


def pack(
    modules: Mapping[str, ModuleWeights], widest: torch.dtype = torch.float64
) -> PackedFactors:
    """Copy the weights of all modules, by path, into one flat buffer.

    The buffer has the widest dtype among the tensors, gains aside, which are kept as sums of
    narrower numbers where that loses nothing; modules are laid out in order of path, so adapters
    that change the same modules with equal shapes get equal layouts.

    Args:
        modules: What an adapter does to each module.
        widest: What is wider is rounded to this: the dtype that it is computed in anyway.
    """
    ordered = {path: _Module(modules[path]) for path in sorted(modules)}
    dtype = _buffer_dtype([module.weights for module in ordered.values()])
    if dtype.itemsize > widest.itemsize:
        dtype = widest
    packer = _Packer(dtype=dtype)
    for module in ordered.values():
        module.place_leading(packer)
    num_leading = packer.end
    for module in ordered.values():
        module.place_banked(packer)
    num_banked = packer.end
    slots = {path: module.place_dense(packer) for path, module in ordered.items()}
    buffer = torch.zeros(packer.end, dtype=dtype)
    for slot, tensor in packer.tensors:
        slot.view(buffer).copy_(tensor)
    layout = AdapterLayout(
        modules=slots, num_elements=packer.end, num_leading=num_leading, num_banked=num_banked
    )
    scales = [scale for module in ordered.values() for scale in module.scales]
    return PackedFactors(
        layout=layout, buffer=buffer, scales=torch.tensor(scales, dtype=torch.float64)
    )


def _buffer_dtype(modules: Sequence[ModuleWeights]) -> torch.dtype:
    """Return the widest dtype of what cannot be kept in a narrower one."""
    gains = [module.gain.values for module in modules if module.gain is not None]
    others = [t for module in modules for t in tensors_of(replace(module, gain=None))]
    dtype = _widest(others or gains)
    return _widest([torch.empty(0, dtype=dtype), *(g for g in gains if not _has_parts(g, dtype))])


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _parts(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a narrower dtype of which each is a sum, [parts, n]."""
    parts: list[Tensor] = []
    rest = values
    for _ in range(_NUM_PARTS):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(values.dtype)
    return torch.stack(parts)


def _has_parts(values: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a narrower dtype can hold numbers as sums, to float32's own precision."""
    if values.dtype is not torch.float32 or dtype.itemsize >= values.dtype.itemsize:
        return False
    error = (_parts(values, dtype).to(values.dtype).sum(0) - values).abs()
    return bool((error <= torch.finfo(values.dtype).eps * values.abs()).all())


def with_layout(packed: PackedFactors, layout: AdapterLayout) -> PackedFactors:
    """Return ``packed`` with an equal layout that other adapters hold already."""
    return replace(packed, layout=layout)

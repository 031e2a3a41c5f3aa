"""Recipe: how one file became a buffer, to make the buffers of other files with an equal header.

Adapters of one trainer differ in little but their values. Where every factor is kept as it lies
in the file, all else (keys, forms, shapes, scales) follows from the header and the alphas, so a
load is one gather: next to no Python, which would hold up the thread that runs the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.adapter import AdapterInfo
from lokr_core.formats.binding import Binding
from lokr_core.formats.file import memory
from lokr_core.formats.replaced import REPLACED_LEAVES
from lokr_core.formats.tensors import is_finite
from lokr_core.layout import AdapterLayout, PackedFactors, tensors_of
from lokr_core.weights import FullFactor, LokrWeights, ModuleWeights

Span = tuple[int, int]  # bytes of the file, from and to
_NUMBERS = ("alpha", "scale")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pieces:
    """How to cut a stretch of a file into factors and what lies between them."""

    stretch: Span
    dtype: torch.dtype
    sizes: Sequence[int]  # elements

    def cut(self, content: Tensor) -> Sequence[Tensor]:
        """Return the pieces of a file, as views."""
        begin, end = self.stretch
        return content[begin:end].view(self.dtype).split_with_sizes(self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recipe:
    """Which pieces of a file lie in which order in the buffer, and what else follows from it."""

    pieces: _Pieces
    fillers: Sequence[Tensor]  # what the file does not hold: zeros, and the w1 of a LoRA
    order: Sequence[int]  # in the buffer: i is piece i, and -1 - i is filler i
    numbers: bytes  # alphas and scales: what follows from them is in the recipe
    number_spans: Sequence[Span]
    layout: AdapterLayout
    scales: Tensor
    info: AdapterInfo

    def apply(self, content: Tensor) -> Tensor | None:
        """Return the buffer of a file, or None if that file must be read step by step.

        Args:
            content: The file's bytes; its header is that of the file that the recipe is of.
        """
        if _bytes_at(content, self.number_spans) != self.numbers:
            return None
        pieces = [*self.pieces.cut(content), *reversed(self.fillers)]
        buffer = torch.cat([pieces[index] for index in self.order])
        return buffer if is_finite(buffer) else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Placed:
    """A tensor's place in the buffer and in the file."""

    tensor: Tensor
    offset: int  # elements of the buffer
    span: Span | None  # None if the file does not hold it
    is_constant: bool  # whether it is the same for every file


def recipe_of(
    content: Tensor,
    binding: Binding,
    weights: Mapping[str, ModuleWeights],
    packed: PackedFactors,
    info: AdapterInfo,
) -> Recipe | None:
    """Return the recipe by which a file was packed, or None if more was done than moving tensors.

    Args:
        content: The file's bytes, of which the tensors are views.
        binding: The tensors that its modules were read from.
        weights: What they do to the modules of the base, by path.
        packed: The same in one buffer.
        info: What is known of the adapter.
    """
    dtype, spans = packed.buffer.dtype, _number_spans(content, binding)
    placed = sorted(_place(content, weights, packed), key=lambda item: item.offset)
    if spans is None or not all(_is_moved(item, dtype) for item in placed):
        return None
    cuts = _cuts([item.span for item in placed if item.span], dtype)
    if cuts is None:
        return None
    pieces, index_by_span = cuts
    fillers, order = _arrange(placed, index_by_span, packed.buffer)
    return Recipe(
        pieces=pieces,
        fillers=fillers,
        order=order,
        numbers=_bytes_at(content, spans),
        number_spans=spans,
        layout=packed.layout,
        scales=packed.scales,
        info=info,
    )


def _number_spans(content: Tensor, binding: Binding) -> list[Span] | None:
    """Return where the numbers lie that other files must have in common; None if others count.

    What equals the base's is left out, which only the values of each file tell; and an unaligned
    tensor is a copy, which could not be told from one that the file does not hold.
    """
    numbers = []
    for module in binding.modules:
        for leaf, entry in module.by_leaf.items():
            span = _span(content, entry.value)
            if span is None or leaf in REPLACED_LEAVES:
                return None
            if leaf in _NUMBERS:
                numbers.append(span)
    return numbers


def _place(
    content: Tensor, weights: Mapping[str, ModuleWeights], packed: PackedFactors
) -> Iterator[_Placed]:
    """Yield where each tensor of the modules lies in the buffer and in the file."""
    for path, module in weights.items():
        slots = packed.layout.modules[path]
        in_buffer = tensors_of(slots.view(packed.buffer, [1.0] * len(slots.leading_sizes)))
        ones = _ones(module)
        for view, tensor in zip(in_buffer, tensors_of(module), strict=True):
            yield _Placed(
                tensor=tensor,
                offset=int(view.storage_offset()),
                span=_span(content, tensor),
                is_constant=any(tensor is one for one in ones),
            )


def _ones(module: ModuleWeights) -> list[Tensor]:
    """Return what may be the w1 of a LoRA: no other w1 is made up rather than in the file."""
    return [
        term.delta.w1.matrix
        for term in module.terms
        if isinstance(term.delta, LokrWeights) and isinstance(term.delta.w1, FullFactor)
    ]


def _span(content: Tensor, tensor: Tensor) -> Span | None:
    """Return the bytes of the file that a tensor is, or None if it does not lie there in one."""
    if not tensor.is_contiguous():
        return None
    if tensor.untyped_storage().data_ptr() != content.untyped_storage().data_ptr():
        return None
    begin = tensor.data_ptr() - content.data_ptr()
    return begin, begin + tensor.nbytes


def _is_moved(item: _Placed, dtype: torch.dtype) -> bool:
    """Return whether a tensor comes into the buffer as it lies in the file."""
    if item.span is None:
        return item.is_constant
    return item.tensor.dtype is dtype and item.span[0] % dtype.itemsize == 0


def _cuts(spans: Sequence[Span], dtype: torch.dtype) -> tuple[_Pieces, dict[Span, int]] | None:
    """Return how to cut the file so that each span is a piece, and the index of each.

    Modules of the base may share a piece, but not a part of one: then there is no cut.
    """
    spans = sorted(set(spans))
    first, end = spans[0][0], spans[0][0]
    sizes: list[int] = []
    index_by_span: dict[Span, int] = {}
    for span in spans:
        if span[0] < end:
            return None
        if span[0] > end:
            sizes.append((span[0] - end) // dtype.itemsize)
        index_by_span[span] = len(sizes)
        sizes.append((span[1] - span[0]) // dtype.itemsize)
        end = span[1]
    return _Pieces(stretch=(first, end), dtype=dtype, sizes=sizes), index_by_span


def _arrange(
    placed: Sequence[_Placed], index_by_span: Mapping[Span, int], buffer: Tensor
) -> tuple[list[Tensor], list[int]]:
    """Return the fillers and the order of a recipe."""
    fillers: list[Tensor] = []
    order: list[int] = []
    end = 0

    def fill(tensor: Tensor) -> None:
        fillers.append(tensor)
        order.append(-len(fillers))

    for item in placed:
        if item.offset > end:
            fill(torch.zeros(item.offset - end, dtype=buffer.dtype))
        if item.span is None:
            fill(item.tensor.flatten())
        else:
            order.append(index_by_span[item.span])
        end = item.offset + item.tensor.numel()
    if end < buffer.numel():
        fill(torch.zeros(buffer.numel() - end, dtype=buffer.dtype))
    return fillers, order


def _bytes_at(content: Tensor, spans: Sequence[Span]) -> bytes:
    view = memory(content)
    return b"".join([view[begin:end] for begin, end in spans])

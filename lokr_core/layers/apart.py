"""Rows apart: those that merged mixes or replaced modules compute, and the base for the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import RoutingError
from lokr_core.layers.change import ReplacedForward
from lokr_core.layers.layer import Forward, Layer
from lokr_core.layers.plan import ModuleRows
from lokr_core.spec import ModuleKind

# Elements up to which a product with all rows takes hardly longer than one with some of them, as
# it is reading the weights that takes the time; 170 tokens of 768.
_MAX_SMALL = 2**17


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnRows:
    """Rows that are computed with parameters of their own, not with the base's."""

    rows: Tensor | None  # None where it is every row of the forward
    forward: Forward
    num_outputs: int


def own_rows(layer: Layer, rows: ModuleRows) -> list[OwnRows]:
    """Return the rows of a module that do not use the base's parameters."""
    spec, own = layer.spec, []
    for merged in rows.merged:
        weight = merged.mix.weights.get(spec.path, spec.parameter)
        bias = merged.mix.biases.get(spec.path, spec.bias)
        size = _num_outputs(layer, weight.shape[1 if spec.kind is ModuleKind.CONV1D else 0])
        own.append(OwnRows(rows=merged.rows, forward=layer.bind(weight, bias), num_outputs=size))
    for replaced in rows.replaced:
        forward = ReplacedForward(layer, replaced.adapter.module(spec.path))
        size = _num_outputs(layer, forward.weight.shape[0])
        own.append(OwnRows(rows=replaced.rows, forward=forward, num_outputs=size))
    return own


def _num_outputs(layer: Layer, num_rows: int) -> int:
    """Return what a weight of so many rows gives; a table's rows are its ids, not its outputs."""
    is_table = layer.spec.kind is ModuleKind.EMBEDDING
    return layer.spec.out_features if is_table else num_rows


def forward_apart(layer: Layer, base: Forward, own: Sequence[OwnRows], num_rows: int) -> Forward:
    """Return a forward in which some rows use parameters of their own, and the rest the base's.

    Few rows keep the base's output to the bit, whatever the others use: rounding depends on how
    many rows a product has, so the base computes all of them then.

    Args:
        layer: The module.
        base: Its forward, which the rest of the rows uses.
        own: Rows that others compute, not all of them in one part.
        num_rows: All rows.

    Raises:
        RoutingError: Rows have outputs of different sizes.
    """
    parts = [_Part(rows=part.rows, forward=part.forward) for part in own if part.rows is not None]
    is_rest = torch.ones(num_rows, dtype=torch.bool, device=parts[0].rows.device)
    for part in parts:
        is_rest[part.rows] = False
    sizes = {part.num_outputs for part in own}
    if bool(is_rest.any()):
        rest = is_rest.nonzero().squeeze(1)
        is_table = layer.spec.kind is ModuleKind.EMBEDDING  # others' ids may not be in the base's
        parts.append(_Part(rows=rest, forward=base, sees_all=not is_table))
        sizes.add(layer.spec.out_features)
    if len(sizes) > 1:
        raise RoutingError(
            f"module {layer.spec.path!r} would give rows of one forward outputs of different "
            f"sizes, {' and '.join(map(str, sorted(sizes)))}: adapters replace it; run such rows "
            "in forwards of their own"
        )
    return _Apart(layer, sorted(parts, key=lambda part: int(part.rows[0])))


class _Part:
    """Some rows and their forward, which is given all rows if ``sees_all`` and they are few."""

    def __init__(self, *, rows: Tensor, forward: Forward, sees_all: bool = False) -> None:
        self.rows = rows
        start, stop = int(rows[0]), int(rows[0]) + len(rows)
        is_run = torch.equal(rows, torch.arange(start, stop, device=rows.device))
        self._place = slice(start, stop) if is_run else rows  # a slice is no copy of its rows
        self._forward = forward
        self._sees_all = sees_all

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the output of the part's rows."""
        if self._sees_all and rows.numel() <= _MAX_SMALL:
            return self._forward(rows)[self._place]
        return self._forward(rows[self._place])


class _Apart:
    """Parts of the rows, each with a forward of its own."""

    def __init__(self, layer: Layer, parts: Sequence[_Part]) -> None:
        self._layer = layer
        self._parts = parts
        order = torch.cat([part.rows for part in parts])
        is_in_order = torch.equal(order, torch.arange(len(order), device=order.device))
        self._places = None if is_in_order else order.argsort()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output."""
        rows = self._layer.input_rows(x)
        out = torch.cat([part(rows) for part in self._parts])
        if self._places is not None:
            out = out.index_select(0, self._places)
        return self._layer.from_rows(out, x)

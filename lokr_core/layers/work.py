"""Work: all that is done at one module in one forward, decided once for a plan of rows."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import RoutingError
from lokr_core.layers.change import Change, DeltaChange, ReplacedForward, changes_at
from lokr_core.layers.group import Group
from lokr_core.layers.layer import Forward, Layer
from lokr_core.layers.plan import ModuleRows
from lokr_core.ops.batched import BatchedDelta, BatchedLokr
from lokr_core.spec import ModuleKind

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnRows:
    """Rows that are computed with parameters of their own, not with the base's."""

    rows: Tensor | None  # None where it is every row of the forward
    forward: Forward
    num_rows: int  # of the weight as a matrix: O', or V' of an embedding


def work_at(layer: Layer, base: Forward, rows: ModuleRows) -> Forward:
    """Return what stands for the forward of a module for rows of one plan.

    Raises:
        RoutingError: Rows have outputs of different sizes.
    """
    own = _own_rows(layer, rows)
    if own and own[0].rows is None:
        return own[0].forward
    if layer.spec.kind is not ModuleKind.EMBEDDING:
        sizes = {rows.num_rows for rows in own} - {layer.spec.out_features}
        if sizes:
            _require_one_size(layer, own, rows.num_rows)
            return _Separate(layer, own)
    if not own and not rows.groups:
        return base
    changes = changes_at(layer, rows.groups)
    routed = _Routed(layer, base, own, changes)
    plain = [change for change in changes if isinstance(change, DeltaChange)]
    if own or not layer.spec.kind.is_linear or len(plain) < len(changes):
        return routed
    deltas = [(change.group, change.delta) for change in plain]
    (group, delta), *others = deltas
    if not others and isinstance(delta, BatchedLokr) and group.covers(rows.num_rows):
        return _AddedToAll(base, delta, routed)
    return _Added(base, deltas, routed)


def _own_rows(layer: Layer, rows: ModuleRows) -> list[OwnRows]:
    spec, own = layer.spec, []
    for merged in rows.merged:
        weight = merged.mix.weights.get(spec.path, spec.parameter)
        bias = merged.mix.biases.get(spec.path, spec.bias)
        size = weight.shape[1 if spec.kind is ModuleKind.CONV1D else 0]
        own.append(OwnRows(rows=merged.rows, forward=layer.bind(weight, bias), num_rows=size))
    for replaced in rows.replaced:
        forward = ReplacedForward(layer, replaced.adapter.module(spec.path))
        size = forward.weight.shape[0]
        own.append(OwnRows(rows=replaced.rows, forward=forward, num_rows=size))
    return own


def _require_one_size(layer: Layer, own: Sequence[OwnRows], num_rows: int) -> None:
    """Check that all rows of a forward have outputs of one size."""
    sizes = {rows.num_rows for rows in own}
    if sum(len(rows.rows) for rows in own if rows.rows is not None) < num_rows:
        sizes.add(layer.spec.out_features)
    if len(sizes) > 1:
        raise RoutingError(
            f"module {layer.spec.path!r} would give rows of one forward outputs of different "
            f"sizes, {' and '.join(map(str, sorted(sizes)))}: adapters replace it; run such rows "
            "in forwards of their own"
        )


def _as_given(device_type: str) -> AbstractContextManager[object]:
    """Return a context without autocast, which would narrow the products of changes."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class _AddedToAll:
    """One Kronecker delta of each row, in order: the step that is worth most."""

    def __init__(self, base: Forward, delta: BatchedLokr, other: "_Routed") -> None:
        self._base = base
        self._delta = delta
        self._other = other

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        out = self._base(x)
        if not _is_plain(out, x):
            return self._other.routed(out, x)
        self._delta.add_to(out, x)
        return out


class _Added:
    """Factored deltas of a linear module, each added to its group's rows, and nothing else."""

    def __init__(
        self, base: Forward, deltas: Sequence[tuple[Group, BatchedDelta]], other: "_Routed"
    ) -> None:
        self._base = base
        self._deltas = deltas
        self._other = other

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        out = self._base(x)
        if not _is_plain(out, x):
            return self._other.routed(out, x)
        rows, x_rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        for group, delta in self._deltas:
            group.add_delta(delta, rows, x_rows)
        return out


def _is_plain(out: Tensor, x: Tensor) -> bool:
    """Whether changes can be added to an output as it is."""
    return out.dtype is x.dtype and out.dtype in _WIDE and out.is_contiguous()


class _Separate:
    """Rows of which none is the base's, in an output of its own size."""

    def __init__(self, layer: Layer, own: Sequence[OwnRows]) -> None:
        self._layer = layer
        self._own = own

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, [..., O']."""
        rows, order = self._layer.input_rows(x), []
        parts = []
        for own in self._own:
            assert own.rows is not None
            parts.append(own.forward(rows[own.rows]))
            order.append(own.rows)
        out = torch.cat(parts)
        return self._layer.from_rows(torch.empty_like(out).index_copy_(0, torch.cat(order), out), x)


class _Routed:
    """The base's forward, rows with parameters of their own, and changes of the others."""

    def __init__(
        self, layer: Layer, base: Forward, own: Sequence[OwnRows], changes: Sequence[Change]
    ) -> None:
        self._layer = layer
        self._base = base
        self._own = own
        self._changes = changes
        is_table = layer.spec.kind is ModuleKind.EMBEDDING
        self._unknown = [  # ids that the base's table may not have
            rows.rows
            for rows in own
            if is_table and rows.num_rows != layer.spec.out_features and rows.rows is not None
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output."""
        return self.routed(self._base(self._base_input(x)), x)

    def routed(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the output for the base's output ``out`` of an input ``x``."""
        x_rows, rows = self._layer.input_rows(x), self._layer.output_rows(out)
        for own in self._own:
            assert own.rows is not None
            rows.index_copy_(0, own.rows, own.forward(x_rows[own.rows]).to(rows.dtype))
        if self._changes:
            with _as_given(x.device.type):
                rows = self._changed(rows, x_rows)
        return self._layer.from_rows(rows, x)

    def _base_input(self, x: Tensor) -> Tensor:
        if not self._unknown:
            return x
        return x.flatten().index_fill(0, torch.cat(self._unknown), 0).view_as(x)

    def _changed(self, rows: Tensor, x: Tensor) -> Tensor:
        """Add every change, in float32 or better, and round once."""
        wide = rows if rows.dtype in _WIDE else rows.float()
        wide_x = x.to(wide.dtype) if x.is_floating_point() else x
        base = wide.clone() if any(change.needs_base for change in self._changes) else wide
        for change in self._changes:
            change.add_to(wide, wide_x, base)
        if wide is rows:
            return rows
        # Only changed rows are written back: a NaN of the others would lose its sign and payload.
        changed = torch.cat([change.group.changed_rows for change in self._changes]).unique()
        return rows.index_copy_(0, changed, wide[changed].to(rows.dtype))

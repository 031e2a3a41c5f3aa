"""Work: all that is done at one module in one forward, decided once for a plan of rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lokr_core.layers.apart import forward_apart, own_rows
from lokr_core.layers.autocast import without_autocast
from lokr_core.layers.change import Change, DeltaChange, changes_at
from lokr_core.layers.layer import Forward, Layer
from lokr_core.layers.plan import ModuleRows
from lokr_core.ops.batched import BatchedLokr

_WIDE = (torch.float32, torch.float64)


def work_at(layer: Layer, base: Forward, rows: ModuleRows) -> Forward:
    """Return what stands for the forward of a module for rows of one plan.

    Raises:
        RoutingError: Rows have outputs of different sizes.
    """
    own = own_rows(layer, rows)
    if own and own[0].rows is None:
        return own[0].forward
    forward = forward_apart(layer, base, own, rows.num_rows) if own else base
    if not rows.groups:
        return forward
    changes = changes_at(layer, rows.groups)
    routed = _Routed(layer, forward, changes)
    plain = [change for change in changes if isinstance(change, DeltaChange)]
    if not layer.spec.kind.is_linear or len(plain) < len(changes):
        return routed
    change, *others = plain
    if not others and isinstance(change.delta, BatchedLokr) and change.group.covers(rows.num_rows):
        return _AddedToAll(forward, change.delta, routed)
    return _Added(forward, plain, routed)


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

    def __init__(self, base: Forward, changes: Sequence[DeltaChange], other: "_Routed") -> None:
        self._base = base
        self._changes = changes
        self._other = other

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        out = self._base(x)
        if not _is_plain(out, x):
            return self._other.routed(out, x)
        rows, x_rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        for change in self._changes:
            change.add_to(rows, x_rows, rows)
        return out


def _is_plain(out: Tensor, x: Tensor) -> bool:
    """Whether changes can be added to an output as it is."""
    return out.dtype is x.dtype and out.dtype in _WIDE and out.is_contiguous()


class _Routed:
    """A forward, and the changes of the rows that carry adapters."""

    def __init__(self, layer: Layer, base: Forward, changes: Sequence[Change]) -> None:
        self._layer = layer
        self._base = base
        self._changes = changes

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output."""
        return self.routed(self._base(x), x)

    def routed(self, out: Tensor, x: Tensor) -> Tensor:
        """Return the output for an output ``out`` without changes, of an input ``x``."""
        rows = self._layer.output_rows(out)
        with without_autocast(x.device.type):
            rows = self._changed(rows, self._layer.input_rows(x))
        return self._layer.from_rows(rows, x)

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

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
    dtype = rows.groups[0].dtype
    routed = _Routed(layer, forward, changes, dtype)
    plain = [change for change in changes if isinstance(change, DeltaChange)]
    if not layer.spec.kind.is_linear or len(plain) < len(changes):
        return routed
    change, *others = plain
    if not others and isinstance(change.delta, BatchedLokr) and change.group.covers(rows.num_rows):
        return _AddedToAll(forward, change.delta, routed, dtype)
    return _Added(forward, plain, routed, dtype)


class _AddedToAll:
    """One Kronecker delta of each row, in order: the step that is worth most."""

    def __init__(
        self, base: Forward, delta: BatchedLokr, other: "_Routed", dtype: torch.dtype
    ) -> None:
        self._base = base
        self._delta = delta
        self._other = other
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        out = self._base(x)
        if not _is_plain(out, x, self._dtype):
            return self._other.routed(out, x)
        self._delta.add_to(out, x)
        return out


class _Added:
    """Factored deltas of a linear module, each added to its group's rows, and nothing else."""

    def __init__(
        self,
        base: Forward,
        changes: Sequence[DeltaChange],
        other: "_Routed",
        dtype: torch.dtype,
    ) -> None:
        self._base = base
        self._changes = changes
        self._other = other
        self._dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        out = self._base(x)
        if not _is_plain(out, x, self._dtype):
            return self._other.routed(out, x)
        rows, x_rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        for change in self._changes:
            change.add_to(rows, x_rows, rows)
        return out


def _is_plain(out: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether changes that are computed in a dtype can be added to an output as it is."""
    return out.dtype is x.dtype is dtype and out.is_contiguous()


class _Routed:
    """A forward, and the changes of the rows that carry adapters."""

    def __init__(
        self, layer: Layer, base: Forward, changes: Sequence[Change], dtype: torch.dtype
    ) -> None:
        self._layer = layer
        self._base = base
        self._changes = changes
        self._dtype = dtype  # of the factors, float32 or float64

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
        """Add every change, in the dtype of the factors or a wider one, and round once."""
        wide = rows.to(torch.promote_types(rows.dtype, self._dtype))
        wide_x = x.to(wide.dtype) if x.is_floating_point() else x
        base = wide.clone() if any(change.needs_base for change in self._changes) else wide
        for change in self._changes:
            change.add_to(wide, wide_x, base)
        if wide is rows:
            return rows
        # Only changed rows are written back: a NaN of the others would lose its sign and payload.
        changed = torch.cat([change.group.changed_rows for change in self._changes]).unique()
        return rows.index_copy_(0, changed, wide[changed].to(rows.dtype))

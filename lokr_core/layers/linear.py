"""RoutedLinear: what stands in for the forward of a linear module."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lokr_core.layers.group import Group
from lokr_core.layers.plan import MergedRows, RowPlan
from lokr_core.layers.routing import Router
from lokr_core.spec import ModuleKind, ModuleSpec

_WIDE = (torch.float32, torch.float64)


class RoutedLinear:
    """The base's forward, plus for each row the change that its mix makes.

    It is set as the module's ``forward``, so the module itself, its class, its parameters and its
    place among the others stay what they are. Without a routing it is the base's forward.
    """

    def __init__(self, spec: ModuleSpec, base: Callable[[Tensor], Tensor], router: Router) -> None:
        self._spec = spec
        self._base = base
        self._router = router
        self._replaced = spec.module.__dict__.get("forward")

    def install(self) -> None:
        """Become the module's forward."""
        self._spec.module.__dict__["forward"] = self

    def restore(self) -> None:
        """Give the module back the forward that it had."""
        if self._replaced is None:
            del self._spec.module.__dict__["forward"]
        else:
            self._spec.module.__dict__["forward"] = self._replaced

    def __call__(self, x: Tensor) -> Tensor:
        """Return the module's output [..., O] for activations [..., I]."""
        routing = self._router.current
        if routing is None:
            return self._base(x)
        plan = routing.plan(self._spec.path, x)
        if plan is None:
            return self._base(x)
        return self._routed(x, plan)

    def _routed(self, x: Tensor, plan: RowPlan) -> Tensor:
        merged, groups = plan.at(self._spec.path)
        if merged and merged[0].rows is None:
            return self._linear(x, merged[0])
        out = self._base(x)
        if not merged and not groups:
            return out
        flat_x = x.reshape(-1, x.shape[-1])  # [N, I]
        flat = out.view(-1, out.shape[-1])  # [N, O]
        for rows in merged:
            assert rows.rows is not None
            flat.index_copy_(0, rows.rows, self._linear(flat_x[rows.rows], rows))
        if groups:
            flat = self._add_groups(flat, flat_x, groups)
        return flat.view(out.shape)

    def _add_groups(self, flat: Tensor, flat_x: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """Add every group's change, in float32 or better, and round once."""
        wide = flat if flat.dtype in _WIDE else flat.float()
        wide_x = flat_x.to(wide.dtype)
        has_gain = any(group.layout.modules[self._spec.path].gain for group in groups)
        base = wide.clone() if has_gain else wide
        for group in groups:
            group.add_to(wide, wide_x, base, self._spec)
        if wide is flat:
            return flat
        # Only changed rows are written back: a NaN of the others would lose its sign and payload.
        rows = torch.cat([group.changed_rows for group in groups]).unique()
        return flat.index_copy_(0, rows, wide[rows].to(flat.dtype))

    def _linear(self, x: Tensor, merged: MergedRows) -> Tensor:
        """Return the merged module's output."""
        weight = merged.mix.weights[self._spec.path]
        weight = weight if self._spec.kind is ModuleKind.LINEAR else weight.mT
        return functional.linear(x, weight, self._spec.bias)

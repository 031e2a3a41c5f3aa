"""RoutedModule: what stands in for the forward of a module that adapters can change."""

from typing import assert_never

import torch
from torch import Tensor

from lokr_core.layers.conv import ConvLayer
from lokr_core.layers.embedding import EmbeddingLayer
from lokr_core.layers.layer import Forward, Layer
from lokr_core.layers.linear import LinearLayer
from lokr_core.layers.norm import NormLayer
from lokr_core.layers.plan import RowPlan
from lokr_core.layers.routing import Router
from lokr_core.layers.work import work_at
from lokr_core.spec import ModuleKind, ModuleSpec


def layer_of(spec: ModuleSpec) -> Layer:
    """Return a module as its rows see it."""
    match spec.kind:
        case ModuleKind.LINEAR | ModuleKind.CONV1D:
            return LinearLayer(spec)
        case ModuleKind.CONV:
            return ConvLayer(spec)
        case ModuleKind.EMBEDDING:
            return EmbeddingLayer(spec)
        case ModuleKind.NORM:
            return NormLayer(spec)
    assert_never(spec.kind)


class RoutedModule:
    """The base's forward, plus for each row the change that its mix makes.

    It is set as the module's ``forward``, so the module itself, its class, its parameters and its
    place among the others stay what they are. Without a routing it is the base's forward.
    """

    def __init__(self, spec: ModuleSpec, router: Router) -> None:
        self._spec = spec
        self._path = spec.path
        self._layer = layer_of(spec)
        self._count = self._layer.count
        self._base: Forward = spec.module.forward
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

    def __call__(self, *positional: Tensor, **named: Tensor) -> Tensor:
        """Return the module's output for its one input, by whatever name it is called with."""
        (x,) = positional or named.values()
        routing = self._router.current
        if routing is None:
            return self._base(x)
        plan = routing.plan(self._path, *self._count(x))
        if plan is None:
            return self._base(x)
        work = plan.works.get(self._path)
        if work is None:
            work = self._prepare(plan)
        return work(x)

    def _prepare(self, plan: RowPlan) -> Forward:
        """Decide what is to be done here for as long as the plan lives."""
        with torch.inference_mode(False):  # a later forward with the plan may need gradients
            work = work_at(self._layer, self._base, plan.at(self._path))
        plan.works[self._path] = work
        return work

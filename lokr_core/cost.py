"""What a mix costs, counted from shapes: the ground on which a way of application is chosen."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from math import prod

from lokr_core.adapter import Adapter
from lokr_core.layout import AdapterLayout, delta_factors
from lokr_core.mix import AdapterMix
from lokr_core.ops.contraction import cheapest_steps, count_macs
from lokr_core.pool import AdapterPool
from lokr_core.spec import ModelSpec, ModuleSpec
from lokr_core.weights import (
    DeltaWeights,
    Factor,
    GainAxis,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
)

MAX_LAYOUTS = 1024  # whose counts are remembered; a server meets few, one for each way to train


@dataclass(frozen=True, slots=True, kw_only=True)
class MixCost:
    """Multiply-adds and bytes of a mix over all linear modules of the base."""

    base_macs: int  # of one row through every linear module of the base
    unmerged_macs: int  # of one row through the deltas
    merge_macs: int  # of merging once
    merged_bytes: int  # of the merged weights


def _dense_macs(factor: Factor) -> int:
    if isinstance(factor, LowRankFactor):
        rows, cols = factor.shape
        return rows * cols * factor.a.shape[-1]
    return 0


def delta_macs(delta: DeltaWeights) -> int:
    """Count the multiply-adds of one row through a delta."""
    if isinstance(delta, LokrWeights):
        return count_macs(cheapest_steps(delta), (delta.w1.shape[1], delta.w2.shape[1]))
    out_features, in_features = delta.shape
    return _form_macs(delta) + out_features * in_features


def _form_macs(delta: DeltaWeights) -> int:
    """Count the multiply-adds of forming the dense delta."""
    out_features, in_features = delta.shape
    return sum(map(_dense_macs, delta_factors(delta))) + out_features * in_features


def _row_macs(module: ModuleSpec, weights: ModuleWeights) -> int:
    macs = sum(delta_macs(term.delta) for term in weights.terms)
    if weights.gain is not None:
        macs += module.out_features
        if weights.gain.axis is GainAxis.INPUT:
            macs += module.out_features * module.in_features  # one more base product
    return macs


class CostModel:
    """Counts costs, once for each layout that was used of late; any thread may ask."""

    def __init__(self, pool: AdapterPool, spec: ModelSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._base_macs = sum(prod(m.shape) for m in spec.modules.values() if m.kind.is_linear)
        self._by_layout: OrderedDict[AdapterLayout, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, mix: AdapterMix) -> MixCost:
        """Return the cost of a mix: the sum of its parts, each changed weight merged once."""
        layouts = [self._pool.get(part.ref).layout for part in mix.parts]
        costs = [self._adapter_macs(self._pool.get(part.ref)) for part in mix.parts]
        paths = {path for layout in layouts for path in layout.modules}
        return MixCost(
            base_macs=self._base_macs,
            unmerged_macs=sum(row for row, _ in costs),
            merge_macs=sum(merge for _, merge in costs),
            merged_bytes=sum(self._spec.modules[path].weight.nbytes for path in paths),
        )

    def _adapter_macs(self, adapter: Adapter) -> tuple[int, int]:
        """Return the multiply-adds of one row, and of forming every delta once."""
        with self._lock:
            known = self._by_layout.get(adapter.layout)
            if known is not None:
                self._by_layout.move_to_end(adapter.layout)
                return known
        modules = adapter.modules()
        counted = (
            sum(_row_macs(self._spec.modules[path], w) for path, w in modules.items()),
            sum(_form_macs(term.delta) for w in modules.values() for term in w.terms),
        )
        with self._lock:
            self._by_layout[adapter.layout] = counted
            if len(self._by_layout) > MAX_LAYOUTS:
                self._by_layout.popitem(last=False)
        return counted

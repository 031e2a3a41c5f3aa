"""What a mix costs, counted from shapes: the ground on which a way of application is chosen."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from lokr_core.adapter import Adapter
from lokr_core.layout import AdapterLayout, ModuleLayout
from lokr_core.mix import AdapterMix, module_weight
from lokr_core.ops.geometry import CONV_TYPES, ConvGeometry
from lokr_core.ops.macs import forming_macs, row_macs
from lokr_core.pool import AdapterPool
from lokr_core.spec import ModelSpec, ModuleKind, ModuleSpec
from lokr_core.weights import GainAxis, ModuleWeights

MAX_LAYOUTS = 1024  # whose counts are remembered; a server meets few, one for each way to train


@dataclass(frozen=True, slots=True, kw_only=True)
class MixCost:
    """Multiply-adds and bytes of a mix; the row of a convolution is one output position."""

    base_macs: int  # of one row through every linear module and convolution of the base
    unmerged_macs: int  # of one row through the changes
    merge_macs: int  # of merging once
    merged_bytes: int  # of the merged parameters


def _product_macs(module: ModuleSpec) -> int:
    """Count the multiply-adds of one row through a module."""
    is_product = module.kind.is_linear or module.kind is ModuleKind.CONV
    return prod(module.shape) if is_product else 0


def module_macs(module: ModuleSpec, weights: ModuleWeights) -> int:
    """Count the multiply-adds that a change adds to one row of a module."""
    layer = module.module
    geometry = ConvGeometry.of(layer) if isinstance(layer, CONV_TYPES) else None
    is_table = module.kind is ModuleKind.EMBEDDING
    macs = sum(row_macs(term.delta, geometry, is_table=is_table) for term in weights.terms)
    if weights.replacement is not None and weights.replacement.weight is not None:
        macs += weights.replacement.weight.numel() * (_product_macs(module) > 0)
    if weights.gain is not None:
        macs += module.out_features
        if weights.gain.axis is GainAxis.INPUT:
            macs += _product_macs(module)  # one more base product
    added = (weights.vector, weights.bias)
    return macs + sum(len(values) for values in added if values is not None)


def merged_bytes(module: ModuleSpec, changes: Sequence[ModuleLayout]) -> int:
    """Count the bytes of a module's parameters with all of these changes merged."""
    weight, bias = module.parameter, module.bias
    weight_sizes, bias_sizes = [0], [0]  # elements; a replaced parameter has its own number
    for slots in changes:
        replaced = slots.replacement
        if replaced is not None and replaced.weight is not None:
            weight_sizes.append(replaced.weight.num_elements)
        elif slots.terms or slots.vector is not None:
            weight_sizes.append(weight.numel())
        slot = slots.bias if replaced is None or replaced.bias is None else replaced.bias
        bias_sizes.append(0 if slot is None else slot.num_elements)
    itemsize = weight.itemsize if bias is None else bias.itemsize
    return max(weight_sizes) * weight.itemsize + max(bias_sizes) * itemsize


class CostModel:
    """Counts costs, once for each layout that was used of late; any thread may ask."""

    def __init__(self, pool: AdapterPool, spec: ModelSpec) -> None:
        self._pool = pool
        self._spec = spec
        self._base_macs = sum(map(_product_macs, spec.modules.values()))
        self._by_layout: OrderedDict[AdapterLayout, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, mix: AdapterMix) -> MixCost:
        """Return the cost of a mix: the sum of its parts, each changed weight merged once."""
        adapters = [self._pool.get(part.ref) for part in mix.parts]
        costs = [self._adapter_macs(adapter) for adapter in adapters]
        changes: dict[str, list[ModuleLayout]] = {}
        for part, adapter in zip(mix.parts, adapters, strict=True):
            for path, slots in adapter.layout.modules.items():
                if module_weight(part, path) != 0:
                    changes.setdefault(path, []).append(slots)
        return MixCost(
            base_macs=self._base_macs,
            unmerged_macs=sum(row for row, _ in costs),
            merge_macs=sum(merge for _, merge in costs),
            merged_bytes=sum(
                merged_bytes(self._spec.modules[path], slots) for path, slots in changes.items()
            ),
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
            sum(module_macs(self._spec.modules[path], w) for path, w in modules.items()),
            sum(forming_macs(term.delta) for w in modules.values() for term in w.terms),
        )
        with self._lock:
            self._by_layout[adapter.layout] = counted
            if len(self._by_layout) > MAX_LAYOUTS:
                self._by_layout.popitem(last=False)
        return counted

"""Merged weights: the base weight plus the change of a whole mix, as new tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.mix import AdapterMix
from lokr_core.ops.torch_ops import module_change
from lokr_core.pool import AdapterPool, module_weight
from lokr_core.spec import ModelSpec, ModuleSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedMix:
    """The merged weights of one mix."""

    weights: Mapping[str, Tensor]  # by module path, in the base's own layout and dtype
    rounding_loss: float  # share of the change that rounding in the base's dtype took away

    @property
    def num_bytes(self) -> int:
        """Bytes of all merged weights."""
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def device(self) -> torch.device:
        """Where the merged weights are."""
        return next(iter(self.weights.values())).device


@dataclass(slots=True)
class _Loss:
    """Sums of squares over modules: of what was lost, and of the change itself."""

    lost: float = 0.0
    change: float = 0.0

    @property
    def ratio(self) -> float:
        return (self.lost / self.change) ** 0.5 if self.change else 0.0


def merge_mix(mix: AdapterMix, pool: AdapterPool, spec: ModelSpec) -> MergedMix:
    """Return ``W + Σ wᵢ (Wᵢ' − W)`` for every module that the mix changes.

    Computed in float32, or float64 for a float64 base, and rounded once; base weights are only
    read.
    """
    adapters = [pool.get(part.ref) for part in mix.parts]
    paths = {path for adapter in adapters for path in adapter.layout.modules}
    parts = [(part, adapter.modules()) for part, adapter in zip(mix.parts, adapters, strict=True)]
    loss = _Loss()
    merged = {}
    for path in sorted(paths):
        module = spec.modules[path]
        change = sum(
            (
                module_weight(part, path)
                * module_change(module.weight, modules[path], spec.compute_dtype)
                for part, modules in parts
                if path in modules
            ),
            start=torch.zeros((), dtype=spec.compute_dtype, device=module.weight.device),
        )
        merged[path] = _merge_module(module, change, loss)
    return MergedMix(weights=merged, rounding_loss=loss.ratio)


def _merge_module(module: ModuleSpec, change: Tensor, loss: _Loss) -> Tensor:
    base = module.weight.to(change.dtype)
    merged = (base + change).to(module.weight.dtype)
    loss.lost += float((merged.to(change.dtype) - base - change).square().sum())
    loss.change += float(change.square().sum())
    return module.to_base_layout(merged).contiguous()

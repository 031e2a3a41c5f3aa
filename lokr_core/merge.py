"""Merged parameters: those of the base plus the change of a whole mix, as new tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lokr_core.adapter import changes_bias, changes_weight
from lokr_core.errors import MergeError
from lokr_core.mix import AdapterMix, module_weight
from lokr_core.ops.torch_ops import adapted_bias, adapted_weight, bias_change, module_change
from lokr_core.pool import AdapterPool
from lokr_core.spec import ModelSpec, ModuleSpec
from lokr_core.weights import ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedMix:
    """The merged parameters of one mix."""

    weights: Mapping[str, Tensor]  # by module path, in the base's own layout and dtype
    biases: Mapping[str, Tensor] = field(default_factory=dict)  # by module path
    rounding_loss: float  # share of the change that rounding in the base's dtype took away

    @property
    def num_bytes(self) -> int:
        """Bytes of all merged parameters."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def device(self) -> torch.device:
        """Where the merged parameters are."""
        return next((tensor.device for tensor in self._tensors), torch.device("cpu"))

    def changes(self, path: str) -> bool:
        """Whether a module has merged parameters."""
        return path in self.weights or path in self.biases

    @property
    def _tensors(self) -> list[Tensor]:
        return [*self.weights.values(), *self.biases.values()]


@dataclass(slots=True)
class _Loss:
    """Sums of squares over parameters: of what was lost, and of the change itself."""

    lost: float = 0.0
    change: float = 0.0

    @property
    def ratio(self) -> float:
        return (self.lost / self.change) ** 0.5 if self.change else 0.0

    def rounded(self, base: Tensor | None, change: Tensor, dtype: torch.dtype) -> Tensor:
        """Return base plus change in another dtype, and note what that loses of the change."""
        wide = change if base is None else base.to(change.dtype) + change
        merged = wide.to(dtype)
        kept = merged.to(change.dtype)
        kept = kept if base is None else kept - base.to(change.dtype)
        self.lost += float((kept - change).square().sum())
        self.change += float(change.square().sum())
        return merged


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Change:
    """What one part of the mix makes of a module."""

    weight: float  # of the part
    weights: ModuleWeights


def merge_mix(mix: AdapterMix, pool: AdapterPool, spec: ModelSpec) -> MergedMix:
    """Return ``W + Σ wᵢ (Wᵢ' − W)`` and the same of biases, for every module that the mix changes.

    Computed in float32, or float64 for a float64 base, and rounded once; base parameters are only
    read.

    Raises:
        MergeError: A module's weight is quantised.
    """
    changes: dict[str, list[_Change]] = {}
    for part in mix.parts:
        for path, weights in pool.get(part.ref).modules().items():
            weight = module_weight(part, path)
            if weight != 0:
                changes.setdefault(path, []).append(_Change(weight=weight, weights=weights))
    merging = _Merging(dtype=spec.compute_dtype)
    with torch.inference_mode(False):  # a later forward that is merged may need gradients
        for path in sorted(changes):
            merging.merge(spec.modules[path], changes[path])
    return MergedMix(
        weights=merging.weights, biases=merging.biases, rounding_loss=merging.loss.ratio
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Merging:
    """What was merged so far."""

    dtype: torch.dtype
    loss: _Loss = field(default_factory=_Loss)
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def merge(self, module: ModuleSpec, changes: Sequence[_Change]) -> None:
        """Merge one module."""
        if module.is_quantized:
            raise MergeError(
                f"module {module.path!r} has a quantised weight, into which nothing can be "
                "merged; apply the mix unmerged"
            )
        is_replaced = len(changes) == 1 and changes[0].weight == 1
        if is_replaced and changes[0].weights.replacement is not None:
            self._replace(module, changes[0].weights)
        else:
            self._add(module, changes)

    def _add(self, module: ModuleSpec, changes: Sequence[_Change]) -> None:
        """Add what each part changes."""
        weight, bias = module.weight, module.bias
        of_weight = [
            change.weight * module_change(weight, change.weights, self.dtype)
            for change in changes
            if changes_weight(change.weights, module.shape)
        ]
        of_bias = [
            change.weight * difference
            for change in changes
            if changes_bias(change.weights, module.shape)
            and (difference := bias_change(bias, change.weights, self.dtype)) is not None
        ]
        if of_weight:
            self._keep_weight(module, self.loss.rounded(weight, _sum(of_weight), weight.dtype))
        if of_bias:
            dtype = weight.dtype if bias is None else bias.dtype
            self.biases[module.path] = self.loss.rounded(bias, _sum(of_bias), dtype)

    def _replace(self, module: ModuleSpec, weights: ModuleWeights) -> None:
        """Take what replaces the base's parameters as it is; its shape may differ."""
        replaced = weights.replacement
        assert replaced is not None
        dtype = module.weight.dtype
        if replaced.weight is not None or weights.terms or weights.vector is not None:
            adapted = adapted_weight(module.weight, weights, self.dtype)
            self._keep_weight(module, self._replaced(module.weight, adapted, dtype))
        bias = adapted_bias(module.bias, weights, self.dtype)
        if bias is not None and (replaced.bias is not None or weights.bias is not None):
            self.biases[module.path] = self._replaced(module.bias, bias, dtype)

    def _replaced(self, base: Tensor | None, adapted: Tensor, dtype: torch.dtype) -> Tensor:
        merged = adapted.to(dtype)
        change = adapted
        if base is not None and base.shape == adapted.shape:
            change = adapted - base.to(adapted.dtype)
        self.loss.lost += float((merged.to(adapted.dtype) - adapted).square().sum())
        self.loss.change += float(change.square().sum())
        return merged

    def _keep_weight(self, module: ModuleSpec, merged: Tensor) -> None:
        self.weights[module.path] = module.to_base_layout(merged).contiguous()


def _sum(changes: Sequence[Tensor]) -> Tensor:
    total = changes[0]
    for change in changes[1:]:
        total = total + change
    return total

"""Adapter: one version of one adapter, its factors in one flat buffer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from lokr_core.errors import LokrError
from lokr_core.layout import AdapterLayout
from lokr_core.mix import AdapterRef
from lokr_core.ops.torch_ops import bias_change, module_change
from lokr_core.spec import ModelSpec
from lokr_core.weights import ModuleWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSource:
    """Where the scale of some modules came from, such as ``alpha/r of adapter_config.json``."""

    source: str
    num_modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What is known of an adapter beside its numbers."""

    format: str  # "peft" or "lycoris"
    algorithms: tuple[str, ...]  # sorted, such as dora, full, loha, lokr, norm
    digest: str  # hex SHA-256 of the tensor file
    num_parameters: int
    scales: tuple[ScaleSource, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """An adapter bound to a base model; read with :func:`lokr_core.read_adapter`."""

    ref: AdapterRef
    spec: ModelSpec
    layout: AdapterLayout
    buffer: Tensor  # [layout.num_elements], in the precision of the file
    scales: Tensor  # [entries of all modules], float64, in the order of layout.modules
    info: AdapterInfo

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a careful user would want to know of the file."""
        return self.info.warnings

    @property
    def num_bytes(self) -> int:
        """Bytes of the factors as they are kept."""
        return self.buffer.nbytes

    def module(self, path: str) -> ModuleWeights:
        """Return the weights of one module, as views of the buffer."""
        before = 0
        for other, slots in self.layout.modules.items():
            if other == path:
                count = len(slots.leading_sizes)
                return slots.view(self.buffer, self.scales[before : before + count].tolist())
            before += len(slots.leading_sizes)
        raise KeyError(path)

    def modules(self) -> Mapping[str, ModuleWeights]:
        """Return the weights of every module by path, as views of the buffer."""
        scales: Iterator[float] = iter(self.scales.tolist())
        return {
            path: slots.view(self.buffer, list(islice(scales, len(slots.leading_sizes))))
            for path, slots in self.layout.modules.items()
        }

    def delta_weights(self) -> dict[str, Tensor]:
        """Return ``adapted − base`` at weight 1 for each parameter that the adapter changes.

        What is replaced by a parameter of another shape is left out; the warnings name it.

        Returns:
            By parameter name, in the base's layout; float32, or float64 for a float64 base; on
            the device of ``buffer``, wherever the base is.
        """
        dtype = self.spec.compute_dtype
        changes: dict[str, Tensor] = {}
        for path, weights in self.modules().items():
            spec = self.spec.modules[path]
            if changes_weight(weights, spec.shape):
                weight = self._with_factors(spec.weight, is_read=not weights.is_sum_of_terms)
                change = module_change(weight, weights, dtype)
                changes[f"{path}.weight"] = spec.to_base_layout(change)
            if changes_bias(weights, spec.shape):
                old = spec.bias
                if old is not None:
                    old = self._with_factors(old, is_read=weights.bias is None)
                bias = bias_change(old, weights, dtype)
                assert bias is not None
                changes[f"{path}.bias"] = bias
        return changes

    def _with_factors(self, base: Tensor, *, is_read: bool) -> Tensor:
        """Return a parameter of the base where the factors are; just its shape, if that will do."""
        if is_read:
            return base.to(self.buffer.device)
        return torch.zeros((), dtype=base.dtype, device=self.buffer.device).expand(base.shape)


def beside_base(adapter: Adapter) -> Adapter:
    """Return an adapter with its factors on the device of the modules that it changes.

    Parameters on ``meta`` are those of a module that is brought in for each forward; they tell no
    device.

    Raises:
        LokrError: The modules are on several devices.
    """
    paths: dict[torch.device, str] = {}
    for path in adapter.layout.modules:
        paths.setdefault(adapter.spec.modules[path].parameter.device, path)
    paths.pop(torch.device("meta"), None)
    if len(paths) > 1:
        places = " and ".join(f"{path!r} on {device}" for device, path in paths.items())
        raise LokrError(
            f"adapter {adapter.ref.adapter_id!r} changes modules on several devices, {places}; "
            "bring the model to one device first"
        )
    device = next(iter(paths), adapter.buffer.device)
    if device == adapter.buffer.device:
        return adapter
    with torch.inference_mode(False):  # a later forward may need gradients
        return replace(adapter, buffer=adapter.buffer.to(device))


def changes_weight(weights: ModuleWeights, shape: tuple[int, int]) -> bool:
    """Return whether a weight [O, C] of this shape is changed and keeps its shape."""
    replaced = weights.replacement
    if replaced is not None and replaced.weight is not None:
        return tuple(replaced.weight.shape) == shape
    return bool(weights.terms) or weights.vector is not None


def changes_bias(weights: ModuleWeights, shape: tuple[int, int]) -> bool:
    """Return whether the bias of a weight [O, C] is changed and keeps its shape."""
    replaced = weights.replacement
    if replaced is not None and replaced.bias is not None:
        return len(replaced.bias) == shape[0]
    return weights.bias is not None

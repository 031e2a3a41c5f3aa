"""Adapter: one version of one adapter, its factors in one flat buffer."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lokr_core.layout import AdapterLayout
from lokr_core.mix import AdapterRef
from lokr_core.ops.torch_ops import module_change
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
    algorithms: tuple[str, ...]  # of "lokr", "lora", "loha", "dora", sorted
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
    scales: Tensor  # [modules], float64, in the order of layout.modules
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
        index = list(self.layout.modules).index(path)
        return self.layout.modules[path].view(self.buffer, float(self.scales[index]))

    def modules(self) -> Mapping[str, ModuleWeights]:
        """Return the weights of every module by path, as views of the buffer."""
        scales: list[float] = self.scales.tolist()
        return {
            path: slots.view(self.buffer, scale)
            for (path, slots), scale in zip(self.layout.modules.items(), scales, strict=True)
        }

    def delta_weights(self) -> dict[str, Tensor]:
        """Return ``adapted − base`` at weight 1 for each parameter that the adapter changes.

        Returns:
            By parameter name, in the base's layout; float32, or float64 for a float64 base.
        """
        return {
            f"{path}.weight": self.spec.modules[path].to_base_layout(
                module_change(self.spec.modules[path].weight, weights, self.spec.compute_dtype)
            )
            for path, weights in self.modules().items()
        }

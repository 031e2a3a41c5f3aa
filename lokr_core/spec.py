"""ModelSpec: the modules of a base model that adapters can change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from lokr_core.layout import AdapterLayout


class LinearKind(Enum):
    """How a linear module stores its weight."""

    LINEAR = "linear"  # nn.Linear: [O, I]
    CONV1D = "conv1d"  # transformers' Conv1D: [I, O]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleSpec:
    """One linear module of the base."""

    path: str
    kind: LinearKind
    module: nn.Module
    refusal: str | None = None  # why an adapter cannot be routed here

    @property
    def weight(self) -> Tensor:
        """The base weight as [O, I], a view that is never written to."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        return weight if self.kind is LinearKind.LINEAR else weight.mT

    @property
    def bias(self) -> Tensor | None:
        """The base bias, [O]."""
        bias = self.module.bias
        return bias.detach() if isinstance(bias, Tensor) else None

    @property
    def out_features(self) -> int:
        """O."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """I."""
        return self.weight.shape[1]

    def to_base_layout(self, delta: Tensor) -> Tensor:
        """Return a delta [O, I] in the layout of the module's own weight."""
        return delta if self.kind is LinearKind.LINEAR else delta.mT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """All linear modules of a base model, by path, and the layouts that its adapters share."""

    modules: Mapping[str, ModuleSpec]
    dtype: torch.dtype
    _layouts: dict[AdapterLayout, AdapterLayout] = field(default_factory=dict, repr=False)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype deltas are computed in: float64 for a float64 base, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def shared_layout(self, layout: AdapterLayout) -> AdapterLayout:
        """Return the one layout that all adapters of equal shapes hold."""
        return self._layouts.setdefault(layout, layout)

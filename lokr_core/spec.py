"""ModelSpec: the modules of a base model that adapters can change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from lokr_core.errors import UnsupportedModuleError
from lokr_core.layout import AdapterLayout


class ModuleKind(Enum):
    """What a module computes with its weight, and how it stores it."""

    LINEAR = "linear"  # nn.Linear: [O, I]
    CONV1D = "conv1d"  # transformers' Conv1D, a linear module: [I, O]
    CONV = "conv"  # nn.Conv1d, Conv2d, Conv3d: [O, I / groups, *kernel]
    EMBEDDING = "embedding"  # nn.Embedding: [V, D]
    NORM = "norm"  # LayerNorm, GroupNorm and RMS norms: [C]

    @property
    def is_linear(self) -> bool:
        """Whether the module multiplies rows by its weight."""
        return self in (ModuleKind.LINEAR, ModuleKind.CONV1D)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleSpec:
    """One module of the base; its weight is taken as a matrix [O, C] whatever its kind.

    The columns of a convolution are (inputs of one group, *kernel), an embedding's rows are its
    tokens, and a norm has one column.
    """

    path: str
    kind: ModuleKind
    module: nn.Module
    refusal: str | None = None  # why an adapter cannot be routed here

    @property
    def parameter(self) -> Tensor:
        """The base weight in its own layout, never written to."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is packed, so that only the module's own forward can apply it."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
            return True
        if weight.itemsize == 1:  # eight bits mean nothing without the scales kept beside them
            return True
        return self.kind is ModuleKind.LINEAR and weight.shape != self.shape

    def _unpacked(self) -> Tensor:
        """Return a packed weight as it is meant, [O, I].

        Raises:
            UnsupportedModuleError: Its kind of packing cannot be undone.
        """
        weight = self.parameter
        is_plain = type(weight) is Tensor  # which cannot say what its values stand for
        if is_plain or not weight.is_floating_point() or weight.shape != self.shape:
            problem = "its quantised weight cannot be read, as a gain needs it to be"
            raise UnsupportedModuleError(self.path, problem)
        return weight.dequantize()  # a subclass of Tensor, which stands for its values

    @property
    def weight(self) -> Tensor:
        """The base weight as [O, C], never written to: a view, or what a packed weight means.

        Raises:
            UnsupportedModuleError: It is packed in a way that cannot be undone.
        """
        weight = self._unpacked() if self.is_quantized else self.parameter
        match self.kind:
            case ModuleKind.CONV1D:
                return weight.mT
            case ModuleKind.NORM:
                return weight[:, None]
            case _:
                return weight.flatten(1)

    @property
    def bias(self) -> Tensor | None:
        """The base bias, [O]."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    @property
    def shape(self) -> tuple[int, int]:
        """O and C."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features  # quantised weights differ
        weight = self.parameter
        match self.kind:
            case ModuleKind.CONV1D:
                return weight.shape[1], weight.shape[0]
            case ModuleKind.NORM:
                return len(weight), 1
            case _:
                return weight.shape[0], weight.shape[1:].numel()

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel of a convolution, else nothing."""
        return tuple(self.parameter.shape[2:]) if self.kind is ModuleKind.CONV else ()

    @property
    def out_features(self) -> int:
        """O."""
        return self.shape[0]

    @property
    def in_features(self) -> int:
        """I: for a convolution the input channels of one group."""
        return self.shape[1] // torch.Size(self.kernel).numel()

    def to_base_layout(self, delta: Tensor) -> Tensor:
        """Return a matrix [O', C] in the layout of the module's own weight; O' may differ."""
        match self.kind:
            case ModuleKind.CONV1D:
                return delta.mT
            case ModuleKind.CONV:
                return delta.reshape(-1, *self.parameter.shape[1:])
            case ModuleKind.NORM:
                return delta.flatten()
            case _:
                return delta


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """All modules of a base model that adapters can change, by path, and the shared layouts."""

    modules: Mapping[str, ModuleSpec]
    dtype: torch.dtype
    components: tuple[str, ...] = ("",)  # what paths start with; a single module has the name ""
    # Why no adapter can change the weights of these other modules, by path.
    refusals: Mapping[str, str] = field(default_factory=dict)
    _layouts: WeakKeyDictionary[AdapterLayout, ReferenceType[AdapterLayout]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype deltas are computed in: float64 for a float64 base, else float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def shared_layout(self, layout: AdapterLayout) -> AdapterLayout:
        """Return the one layout that all adapters of equal shapes hold, while there are any."""
        found = self._layouts.get(layout)
        shared = None if found is None else found()
        if shared is not None:
            return shared
        self._layouts[layout] = ref(layout)
        return layout

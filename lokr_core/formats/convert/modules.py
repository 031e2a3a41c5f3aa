"""SourceModule: the tensors of a file for one base module, and the scale that belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.formats.binding import FileModule, Target
from lokr_core.formats.convert.rows import placed
from lokr_core.formats.convert.scale import Leaves
from lokr_core.spec import ModuleSpec
from lokr_core.weights import DenseWeights, ModuleWeights

# Told by the scale, or the base's own.
_LEFT_OUT = ("alpha", "scale", "original_weight", "original_bias")
_SIDES = frozenset(
    f"{name}{part}"
    for name in ("lokr_w1", "lokr_w2", "hada_w1", "hada_w2")
    for part in ("_a", "_b")
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceModule:
    """What a file holds for one base module."""

    spec: ModuleSpec
    leaves: Leaves  # in LyCORIS's shapes
    scale: float
    is_peft: bool  # whether it is to be understood as PEFT does

    @property
    def path(self) -> str:
        """Path of the base module."""
        return self.spec.path

    def has(self, *leaves: str) -> bool:
        """Return whether the file has one of these leaves for the module."""
        return any(leaf in self.leaves for leaf in leaves)


def source_modules(adapter: Adapter, modules: Sequence[FileModule]) -> list[SourceModule]:
    """Return what a file holds for each base module that it changes, sorted by path.

    What equals the base's own is not among that; the adapter's warnings tell of it.

    Args:
        adapter: The adapter as it was read.
        modules: The modules of its file.

    Raises:
        ConversionError: A module of the file has no tensors of its own for a base module.
    """
    weights = adapter.modules()
    found: dict[str, SourceModule] = {}
    for module in modules:
        targets = sorted(module.targets, key=lambda target: target.spec.path)
        for path, group in groupby(targets, key=lambda target: target.spec.path):
            if path in weights:
                found[path] = _source(adapter, module, list(group), weights[path])
    return [found[path] for path in sorted(found)]


def _source(
    adapter: Adapter, module: FileModule, targets: Sequence[Target], weights: ModuleWeights
) -> SourceModule:
    spec = targets[0].spec
    leaves = {
        leaf: _in_shape(leaf, entry.value, spec)
        for leaf, entry in module.by_leaf.items()
        if leaf not in _LEFT_OUT
    }
    return SourceModule(
        spec=spec,
        leaves=placed(leaves, targets),
        scale=_scale(weights),
        is_peft=adapter.info.format == "peft",
    )


def _in_shape(leaf: str, tensor: Tensor, spec: ModuleSpec) -> Tensor:
    """Return a tensor in the shape that LyCORIS gives it."""
    if leaf in _SIDES and tensor.ndim > 2:
        return tensor.flatten(1)
    if leaf in ("lokr_t2", "hada_t1", "hada_t2") and spec.kernel:
        return tensor.reshape(*tensor.shape[:2], *spec.kernel)  # PEFT's has one dimension more
    return tensor


def _scale(weights: ModuleWeights) -> float:
    """Return the scale of the factors; whatever else there is has none."""
    for term in weights.terms:
        if not isinstance(term.delta, DenseWeights):
            return term.delta.scale
    return next((term.delta.scale for term in weights.terms), 1.0)


def is_both_full(leaves: Leaves) -> bool:
    """Return whether the module is a LoKr of two full factors, whose alpha nobody regards."""
    return "lokr_w1" in leaves and "lokr_w2" in leaves


def is_scrambled(module: SourceModule) -> bool:
    """Return whether PEFT makes another matrix of the factors than all others do."""
    w2 = module.leaves.get("lokr_w2")
    return w2 is not None and w2.ndim == 3 and isinstance(module.spec.module, torch.nn.Conv1d)

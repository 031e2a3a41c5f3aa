"""SourceModule: the tensors of a file for one base module, and the scale that belongs to them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from lokr_core.formats.binding import FileModule, Target
from lokr_core.formats.convert.rows import placed
from lokr_core.formats.convert.scale import Leaves
from lokr_core.formats.modules import ModuleReader
from lokr_core.spec import ModuleSpec

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


def source_modules(
    modules: Sequence[FileModule], reader: ModuleReader, changed: Collection[str]
) -> list[SourceModule]:
    """Return what a file holds for each base module that it changes, sorted by path.

    What equals the base's own is not among that; the adapter's warnings tell of it.

    Args:
        modules: The modules of the file.
        reader: What they have in common.
        changed: The paths of the base modules that the file changes.

    Raises:
        ConversionError: A module of the file has no tensors of its own for a base module.
    """
    found: dict[str, SourceModule] = {}
    for module in modules:
        scale = reader.read(module).scale  # the adapter has none of a delta that it has added up
        targets = sorted(module.targets, key=lambda target: target.spec.path)
        for path, group in groupby(targets, key=lambda target: target.spec.path):
            if path in changed:
                found[path] = SourceModule(
                    spec=reader.spec.modules[path],
                    leaves=_leaves(module, list(group)),
                    scale=1.0 if scale is None else scale.value,
                    is_peft=reader.is_peft,
                )
    return [found[path] for path in sorted(found)]


def _leaves(module: FileModule, targets: Sequence[Target]) -> Leaves:
    """Return what a file's module holds for one base module."""
    spec = targets[0].spec
    leaves = {
        leaf: _in_shape(leaf, entry.value, spec)
        for leaf, entry in module.by_leaf.items()
        if leaf not in _LEFT_OUT
    }
    return placed(leaves, targets)


def _in_shape(leaf: str, tensor: Tensor, spec: ModuleSpec) -> Tensor:
    """Return a tensor in the shape that LyCORIS gives it."""
    if leaf in _SIDES and tensor.ndim > 2:
        return tensor.flatten(1)
    if leaf in ("lokr_t2", "hada_t1", "hada_t2") and spec.kernel:
        return tensor.reshape(*tensor.shape[:2], *spec.kernel)  # PEFT's has one dimension more
    return tensor


def is_both_full(leaves: Leaves) -> bool:
    """Return whether the module is a LoKr of two full factors, whose alpha nobody regards."""
    return "lokr_w1" in leaves and "lokr_w2" in leaves


def is_scrambled(module: SourceModule) -> bool:
    """Return whether PEFT makes another matrix of the factors than all others do."""
    w2 = module.leaves.get("lokr_w2")
    return w2 is not None and w2.ndim == 3 and isinstance(module.spec.module, torch.nn.Conv1d)

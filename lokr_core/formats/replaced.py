"""Replaced parameters: whole weights and biases that a file holds in place of the base's."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lokr_core.errors import (
    AdapterMismatchError,
    AdapterTensorError,
    UnsupportedModuleError,
    quoted,
)
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.place import Change
from lokr_core.formats.tensors import WeightShape, checked
from lokr_core.ops.torch_ops import adapted_weight
from lokr_core.spec import ModuleKind
from lokr_core.weights import ModuleWeights, Replacement, Term

_ORIGINALS = frozenset({"original_weight", "original_bias"})
REPLACED_LEAVES = frozenset({"weight", "bias", "base_weight", "base_bias"}) | _ORIGINALS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replaced:
    """What of a module a file holds whole, and what a careful user would want to know of it."""

    weight: Tensor | None = None  # [O', C]
    bias: Tensor | None = None  # [O']
    base_weight: Tensor | None = None  # [O', C], to which the file's own deltas are added
    base_bias: Tensor | None = None  # [O']
    notes: tuple[str, ...] = ()

    @property
    def out_features(self) -> int | None:
        """O', if the weight is replaced."""
        weight = self.weight if self.base_weight is None else self.base_weight
        return None if weight is None else len(weight)


def read_replaced(module: FileModule, shape: WeightShape) -> Replaced:
    """Return what a file holds whole; what equals the base's is left out, with a note.

    Raises:
        AdapterTensorError: A tensor is unusable.
        AdapterMismatchError: A tensor has other inputs than the base's.
        UnsupportedModuleError: It replaces a part of a module only.
    """
    entries = {leaf: module.by_leaf[leaf] for leaf in REPLACED_LEAVES & module.by_leaf.keys()}
    if not entries:
        return Replaced()
    _refuse_parts(module, shape, next(iter(entries.values())))
    found: dict[str, Tensor] = {}
    notes = []
    for leaf, entry in entries.items():
        if leaf in _ORIGINALS:
            notes.append("hold the base's own parameters beside what replaces them; left out")
            continue
        is_weight = leaf.endswith("weight")
        tensor = _weight(module, shape, entry) if is_weight else _bias(entry)
        if _is_same(tensor, _base_weight(module) if is_weight else _base_bias(module)):
            notes.append("hold parameters that equal the base's, which were left out")
        else:
            found[leaf] = tensor
    replaced = Replaced(
        weight=found.get("weight"),
        bias=found.get("bias"),
        base_weight=found.get("base_weight"),
        base_bias=found.get("base_bias"),
        notes=tuple(dict.fromkeys(notes)),
    )
    _check_sizes(module, replaced, shape)
    return replaced


def file_weight(module: FileModule) -> Tensor:
    """Return the base weight that a module of a file is for, [O, C], on the CPU."""
    if module.is_whole:
        return module.targets[0].spec.weight.cpu()
    blocks = []
    for target in module.targets:
        assert target.rows is not None
        begin = target.at or 0
        blocks.append(target.spec.weight[begin : begin + len(target.rows)].cpu())
    return torch.cat(blocks)


def _base_weight(module: FileModule) -> Tensor | None:
    """Return the same unless it is packed: what was rounded so never equals what it was."""
    if any(target.spec.is_quantized for target in module.targets):
        return None
    return file_weight(module)


def _base_bias(module: FileModule) -> Tensor | None:
    """Return the base bias that a module of a file is for, [O]."""
    parts = [target.spec.bias for target in module.targets]
    biases = [bias.cpu() for bias in parts if bias is not None]
    return torch.cat(biases) if len(biases) == len(parts) else None


def _refuse_parts(module: FileModule, shape: WeightShape, entry: NamedTensor) -> None:
    for target in module.targets:
        size = target.spec.out_features
        if target.rows is not None and (target.at or len(target.rows) != size):
            problem = f"tensor {entry.key!r} of {shape.name!r} replaces a part of it only"
            raise UnsupportedModuleError(target.spec.path, problem)


def _weight(module: FileModule, shape: WeightShape, entry: NamedTensor) -> Tensor:
    """Return a stored weight, which has the layout of its module's own, as [O', C]."""
    stored = checked(entry)
    expected = (shape.out_features, shape.columns)
    found = tuple(stored.shape)
    if shape.kind is ModuleKind.NORM:
        stored = stored[:, None] if stored.ndim == 1 else stored
        is_fit = tuple(stored.shape) == expected
    elif shape.kind is ModuleKind.CONV1D:
        is_fit = stored.ndim == 2 and stored.shape[0] == shape.columns
        stored = stored.mT if is_fit else stored
    else:
        is_fit = found[1:] == (shape.in_features, *shape.kernel)
        stored = stored.flatten(1) if is_fit else stored
    if not is_fit or (len(stored) != shape.out_features and not module.is_whole):
        raise AdapterMismatchError(shape.name, found=found, expected=expected)
    return stored


def _bias(entry: NamedTensor) -> Tensor:
    stored = checked(entry)
    if stored.ndim != 1:
        raise AdapterTensorError(entry.key, f"is {tuple(stored.shape)}, but a bias has 1 dimension")
    return stored


def _is_same(stored: Tensor, base: Tensor | None) -> bool:
    """Return whether two tensors are one, rounded to the dtype of either."""
    if base is None or stored.shape != base.shape:
        return False
    return torch.equal(stored.to(base.dtype), base) or torch.equal(base.to(stored.dtype), stored)


def _check_sizes(module: FileModule, replaced: Replaced, shape: WeightShape) -> None:
    """Check that weight and bias still have one number of outputs, and neither comes twice."""
    for leaf in ("weight", "bias"):
        if leaf in module.by_leaf and f"base_{leaf}" in module.by_leaf:
            first, second = module.by_leaf[leaf].key, module.by_leaf[f"base_{leaf}"].key
            raise AdapterTensorError(second, f"replaces what {quoted(first)} replaces")
    num_outputs = replaced.out_features or shape.out_features
    bias = replaced.bias if replaced.base_bias is None else replaced.base_bias
    keeps_bias = any(target.spec.bias is not None for target in module.targets)
    found = len(bias) if bias is not None else shape.out_features if keeps_bias else num_outputs
    if found != num_outputs:
        problem = f"{num_outputs} outputs, but a bias of {found}"
        raise UnsupportedModuleError(shape.name, f"with what replaces it, it has {problem}")


def with_replaced(
    module: FileModule, change: Change, replaced: Replaced, dtype: torch.dtype
) -> Change:
    """Return a change in which deltas of what the file itself replaces are added to that.

    Args:
        module: The module's tensors.
        change: What they add.
        replaced: What they replace.
        dtype: What the sums are kept in.

    Raises:
        AdapterTensorError: A tensor replaces what another changes.
    """
    weight, bias = replaced.weight, replaced.bias
    _check_unchanged(module, "weight", weight, change.deltas or change.vector is not None)
    _check_unchanged(module, "bias", bias, change.bias is not None)
    if replaced.base_weight is not None:
        terms = tuple(Term(delta=delta) for delta in change.deltas)
        alone = ModuleWeights(terms=terms, gain=change.gain, vector=change.vector)
        has_delta = bool(terms) or change.vector is not None
        base = replaced.base_weight
        weight = adapted_weight(base, alone, dtype) if has_delta else base
        change = replace(change, deltas=(), gain=None, vector=None)
    if replaced.base_bias is not None:
        delta = change.bias
        bias = replaced.base_bias if delta is None else replaced.base_bias.to(dtype) + delta
        change = replace(change, bias=None)
    if weight is None and bias is None:
        return change
    return replace(change, replacement=Replacement(weight=weight, bias=bias))


def _check_unchanged(
    module: FileModule, leaf: str, whole: Tensor | None, is_changed: object
) -> None:
    if whole is not None and is_changed:
        key = module.by_leaf[leaf].key
        raise AdapterTensorError(key, "replaces what other tensors of the file change")

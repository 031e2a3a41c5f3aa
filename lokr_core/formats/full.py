"""Deltas without factors: whole differences of weights, norms and biases, and sparse residuals."""

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError, UnsupportedModuleError
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.parts import DeltaForm, FormContext, required
from lokr_core.formats.tensors import WeightShape, checked, matrix, vector
from lokr_core.spec import ModuleKind
from lokr_core.weights import DenseWeights

RESIDUAL_LEAVES = frozenset({"bias_indices", "bias_values", "bias_size"})
BIAS_LEAVES = ("diff_b", "b_norm", "lora_up_bias")
_INTEGERS = (torch.int16, torch.int32, torch.int64)


def read_full(module: FileModule, context: FormContext) -> DeltaForm:
    """Return a whole difference of weights, [O, C] or [O, I, *kernel].

    Raises:
        AdapterTensorError: It is unusable.
        AdapterMismatchError: It has not the shape of the base weight.
    """
    delta = DenseWeights(matrix=matrix(module.by_leaf["diff"], context.shape.kernel), scale=1.0)
    context.shape.check(delta.shape)
    return DeltaForm(algorithm="full", delta=delta, rank=None, has_ratio=False)


def read_residual(
    module: FileModule, shape: WeightShape, dtype: torch.dtype
) -> DenseWeights | None:
    """Return what an extracted LoRA leaves over, which the file keeps sparse; None if nothing.

    It belongs to the weight, although its tensors are named after the bias.

    Args:
        module: The module's tensors.
        shape: The weight.
        dtype: What it is computed with; a wider one of the file is rounded to it.

    Raises:
        AdapterTensorError: The indices are unusable, or it has not the size of the base weight.
    """
    if not RESIDUAL_LEAVES & module.by_leaf.keys():
        return None
    size = required(module, "bias_size")
    if _integers(size).tolist() != [shape.out_features, shape.columns]:
        problem = f"is not [{shape.out_features}, {shape.columns}], the size of the base weight"
        raise AdapterTensorError(size.key, problem)
    entry = required(module, "bias_values")
    values = checked(entry) if entry.value.numel() else entry.value  # nothing may be left over
    rows, columns = _positions(required(module, "bias_indices"), values, shape)
    if not values.numel():
        return None
    kept = min(values.dtype, dtype, key=lambda one: one.itemsize)  # a whole weight is allocated
    dense = torch.zeros(shape.out_features, shape.columns, dtype=kept)
    return DenseWeights(matrix=dense.index_put_((rows, columns), values.to(kept)), scale=1.0)


def _positions(entry: NamedTensor, values: Tensor, shape: WeightShape) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of the values of a residual."""
    indices = _integers(entry).long()
    if tuple(indices.shape) != (2, values.numel()) or values.ndim != 1:
        problem = f"is {tuple(indices.shape)}, not a row and a column for each of the values"
        raise AdapterTensorError(entry.key, problem)
    rows, columns = indices.unbind()
    limits = torch.tensor([[shape.out_features], [shape.columns]])
    if bool(((indices < 0) | (indices >= limits)).any()):
        raise AdapterTensorError(entry.key, "holds positions outside of the base weight")
    if len(torch.unique(rows * shape.columns + columns)) < len(rows):
        raise AdapterTensorError(entry.key, "holds a position twice")
    return rows, columns


def _integers(entry: NamedTensor) -> Tensor:
    if entry.value.dtype not in _INTEGERS:
        raise AdapterTensorError(entry.key, f"is {entry.value.dtype}, but whole numbers are needed")
    return entry.value


def read_vector(module: FileModule, shape: WeightShape) -> Tensor | None:
    """Return the difference of a norm's weight, [C]; None if there is none.

    Raises:
        AdapterTensorError: It is unusable.
        UnsupportedModuleError: The module is no norm.
    """
    entry = module.by_leaf.get("w_norm")
    if entry is None and shape.kind is ModuleKind.NORM:
        entry = module.by_leaf.get("diff")
    if entry is None:
        return None
    if shape.kind is not ModuleKind.NORM:
        raise UnsupportedModuleError(shape.name, f"tensor {entry.key!r} is for a norm")
    return vector(entry, shape.out_features)


def read_bias(
    module: FileModule, shape: WeightShape, scale: float, dtype: torch.dtype
) -> Tensor | None:
    """Return the difference of a bias, [O]; None if there is none.

    Args:
        module: The module's tensors.
        shape: The weight that the bias belongs to.
        scale: What the bias of a LoRA is multiplied by.
        dtype: What that product is kept in, unless the file's own dtype holds it exactly.

    Raises:
        AdapterTensorError: It is unusable, or there are two.
        UnsupportedModuleError: The module has no place for a bias.
    """
    entries = [module.by_leaf[leaf] for leaf in BIAS_LEAVES if leaf in module.by_leaf]
    if not entries:
        return None
    entry = entries[0]
    if len(entries) > 1:
        raise AdapterTensorError(entries[1].key, f"comes beside {entry.key!r}: two biases")
    if shape.kind is ModuleKind.EMBEDDING:
        raise UnsupportedModuleError(shape.name, f"tensor {entry.key!r} is a bias, it has none")
    bias = vector(entry, shape.out_features)
    if scale == 1 or "lora_up_bias" not in module.by_leaf:
        return bias
    product = scale * bias.double()
    narrow = product.to(bias.dtype)
    return narrow if bool((narrow == product).all()) else product.to(dtype)

"""DoRA's magnitude of a module, read into the gain that it amounts to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.tensors import WeightShape, checked, is_finite
from lokr_core.ops.torch_ops import dora_gain
from lokr_core.spec import ModuleKind
from lokr_core.weights import DeltaWeights, Gain, GainAxis, Term

PEFT_LEAF = "lora_magnitude_vector"
LYCORIS_LEAF = "dora_scale"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GainContext:
    """What a gain depends on beside its magnitude."""

    shape: WeightShape
    weight: Tensor  # [O, C]: a norm over outputs needs all that the file has in one
    dtype: torch.dtype  # what LyCORIS computes in, whose epsilon it adds to the norm


def read_gain(module: FileModule, deltas: Sequence[DeltaWeights], context: GainContext) -> Gain:
    """Return the gain of a DoRA at the file's own shape.

    Args:
        module: The module's tensors, a magnitude among them.
        deltas: What is added to its weight, scale included.
        context: That weight, and what it is computed in.

    Raises:
        AdapterTensorError: The magnitude does not fit the module, or there are two.
    """
    peft, lycoris = module.by_leaf.get(PEFT_LEAF), module.by_leaf.get(LYCORIS_LEAF)
    entry = peft or lycoris
    assert entry is not None
    if peft and lycoris:
        raise AdapterTensorError(lycoris.key, f"comes beside {peft.key!r}: two magnitudes")
    magnitude, shape = checked(entry), context.shape
    axis = _peft_axis(shape, magnitude) if peft else _lycoris_axis(shape, magnitude)
    if axis is None:
        raise _no_magnitude(entry, shape)
    eps = 0.0 if peft else torch.finfo(context.dtype).eps  # PEFT adds none
    terms = [Term(delta=delta) for delta in deltas]
    gain = dora_gain(context.weight, terms, magnitude.flatten(), axis, eps)
    if not is_finite(gain.values):
        raise AdapterTensorError(entry.key, "belongs to a weight whose norm is zero")
    return gain


def _no_magnitude(entry: NamedTensor, shape: WeightShape) -> AdapterTensorError:
    return AdapterTensorError(
        entry.key,
        f"is {tuple(entry.value.shape)}, which is no magnitude of module {shape.name!r} "
        f"of {shape.out_features} outputs and {shape.in_features} inputs",
    )


def _peft_axis(shape: WeightShape, magnitude: Tensor) -> GainAxis | None:
    """Return the axis of PEFT's magnitude: by output, but an embedding's by its columns."""
    found = tuple(magnitude.shape)
    if shape.kind is ModuleKind.EMBEDDING:
        return GainAxis.INPUT if found == (shape.columns,) else None
    is_of_conv = found == (1, shape.out_features, *[1] * len(shape.kernel)) and shape.kernel
    return GainAxis.OUTPUT if is_of_conv or found == (shape.out_features,) else None


def _lycoris_axis(shape: WeightShape, magnitude: Tensor) -> GainAxis | None:
    """Return the axis by shape, never by size alone: a square module has equal sizes."""
    found = tuple(magnitude.shape)
    if len(found) < 2 or any(size != 1 for size in found[2:]):
        return None
    if found[:2] == (shape.out_features, 1):
        return GainAxis.OUTPUT
    return GainAxis.INPUT if found[:2] == (1, shape.in_features) else None

"""DoRA's magnitude of a module, read into the gain that it amounts to."""

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.forms import checked, is_finite
from lokr_core.formats.keys import ModuleTensors
from lokr_core.ops.torch_ops import dora_gain
from lokr_core.spec import ModuleSpec
from lokr_core.weights import DeltaWeights, Gain, GainAxis, Term

PEFT_LEAF = "lora_magnitude_vector"
LYCORIS_LEAF = "dora_scale"


def read_gain(tensors: ModuleTensors, delta: DeltaWeights, dtype: torch.dtype) -> Gain | None:
    """Return the gain of a DoRA, or None if the module has no magnitude.

    Args:
        tensors: The module's tensors.
        delta: The module's delta, scale included.
        dtype: What LyCORIS computes in, whose epsilon it adds to the norm; PEFT adds none.

    Raises:
        AdapterTensorError: The magnitude does not fit the module, or there are two.
    """
    peft, lycoris = tensors.by_leaf.get(PEFT_LEAF), tensors.by_leaf.get(LYCORIS_LEAF)
    entry = peft or lycoris
    if entry is None:
        return None
    if peft and lycoris:
        raise AdapterTensorError(lycoris.key, f"comes beside {peft.key!r}: two magnitudes")
    magnitude = checked(entry, num_dims=1 if peft else 2)
    axis = _axis(tensors.spec, magnitude)
    if axis is None:
        spec = tensors.spec
        raise AdapterTensorError(
            entry.key,
            f"is {tuple(magnitude.shape)}, which is no magnitude of module {spec.path!r} "
            f"of {spec.out_features} outputs and {spec.in_features} inputs",
        )
    eps = 0.0 if peft else torch.finfo(dtype).eps
    weight = tensors.spec.weight.cpu()  # where adapters are read, whatever the base runs on
    gain = dora_gain(weight, [Term(delta=delta)], magnitude.flatten(), axis, eps)
    if not is_finite(gain.values):
        raise AdapterTensorError(entry.key, "belongs to a weight whose norm is zero")
    return gain


def _axis(spec: ModuleSpec, magnitude: Tensor) -> GainAxis | None:
    """Return the axis by shape, never by size alone: a square module has equal sizes."""
    shape = tuple(magnitude.shape)
    if shape in ((spec.out_features,), (spec.out_features, 1)):
        return GainAxis.OUTPUT
    return GainAxis.INPUT if shape == (1, spec.in_features) else None

"""Whether two adapters are the same: factors bit for bit, scales to the last place of a float64."""

import math

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.layout import tensors_of
from lokr_core.ops.torch_ops import terms_weight
from lokr_core.weights import Gain, ModuleWeights, Term

_LAST_PLACE = 2.0**-52  # of a float64
_SUM_TOLERANCE = 2.0**-44  # of products that are summed in another order, in float64
_GAIN_TOLERANCE = 2.0**-20  # of norms in float32 of deltas in another form


def first_difference(one: Adapter, other: Adapter) -> str | None:
    """Return the first module that two adapters of one base change differently, or None."""
    before, after = one.modules(), other.modules()
    if before.keys() != after.keys():
        return min(before.keys() ^ after.keys())
    for path, weights in before.items():
        shape = one.spec.modules[path].shape
        if not _are_equal(weights, after[path], shape):
            return path
    return None


def _are_equal(one: ModuleWeights, other: ModuleWeights, shape: tuple[int, int]) -> bool:
    if _have_equal_terms(one, other):
        return all(map(_are_same, tensors_of(one), tensors_of(other)))
    return (
        _give_equal_sums(one, other, shape)
        and _are_near(one.gain, other.gain)
        and all(map(_are_same, _beside(one), _beside(other)))
    )


def _have_equal_terms(one: ModuleWeights, other: ModuleWeights) -> bool:
    """Return whether the terms have equal forms and scales."""
    return (
        len(one.terms) == len(other.terms)
        and all(map(_is_alike, one.terms, other.terms))
        and list(map(_shape, tensors_of(one))) == list(map(_shape, tensors_of(other)))
    )


def _is_alike(one: Term, other: Term) -> bool:
    scales = one.delta.scale, other.delta.scale
    return (
        type(one.delta) is type(other.delta)
        and (one.rows, one.at) == (other.rows, other.at)
        and math.isclose(*scales, rel_tol=_LAST_PLACE, abs_tol=0.0)
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _give_equal_sums(one: ModuleWeights, other: ModuleWeights, shape: tuple[int, int]) -> bool:
    """Return whether the sums of terms in other forms are equal."""
    like = torch.empty(shape, dtype=torch.float64)
    before, after = terms_weight(one.terms, like), terms_weight(other.terms, like)
    allowed = _SUM_TOLERANCE * float(before.abs().max())
    return float((before - after).abs().max()) <= allowed


def _are_near(one: Gain | None, other: Gain | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.axis is other.axis and torch.allclose(
        one.values, other.values, rtol=_GAIN_TOLERANCE, atol=0.0
    )


def _beside(weights: ModuleWeights) -> list[Tensor | None]:
    """Return what a module has beside its terms and its gain."""
    replaced = weights.replacement
    others = (None, None) if replaced is None else (replaced.weight, replaced.bias)
    return [weights.vector, weights.bias, *others]


def _are_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.double(), other.double())

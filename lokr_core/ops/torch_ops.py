"""The definitions of every operation, in plain torch; kernels are faster copies of these."""

from typing import assert_never

import torch
from torch import Tensor

from lokr_core.weights import (
    DeltaWeights,
    Gain,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    ModuleWeights,
)


def kron(w1: Tensor, w2: Tensor) -> Tensor:
    """Return ``w1 ⊗ w2`` over the last two dimensions, [..., O1 * O2, I1 * I2]."""
    blocks = w1[..., :, None, :, None] * w2[..., None, :, None, :]  # [..., O1, O2, I1, I2]
    return blocks.flatten(-2).flatten(-3, -2)


def delta_weight(weights: DeltaWeights, dtype: torch.dtype) -> Tensor:
    """Return the dense delta, [..., O, I], computed in ``dtype``."""
    match weights:
        case LokrWeights():
            w1, w2 = weights.w1.to(dtype).dense(), weights.w2.to(dtype).dense()
            return weights.scale * kron(w1, w2)
        case HadamardWeights():
            left, right = weights.left.to(dtype).dense(), weights.right.to(dtype).dense()
            return weights.scale * (left * right)
    assert_never(weights)


def adapted_weight(weight: Tensor, weights: ModuleWeights, dtype: torch.dtype) -> Tensor:
    """Return W' = gain * (W + delta), [O, I], computed in ``dtype``."""
    adapted = weight.to(dtype) + delta_weight(weights.delta, dtype)
    if weights.gain is None:
        return adapted
    return adapted * _along(weights.gain).to(dtype)


def module_change(weight: Tensor, weights: ModuleWeights, dtype: torch.dtype) -> Tensor:
    """Return W' − W, [O, I], computed in ``dtype``; without a gain that is the delta itself."""
    if weights.gain is None:
        return delta_weight(weights.delta, dtype)
    return adapted_weight(weight, weights, dtype) - weight.to(dtype)


def dora_gain(
    weight: Tensor, delta: DeltaWeights, magnitude: Tensor, axis: GainAxis, eps: float
) -> Gain:
    """Return DoRA's gain ``magnitude / (norm(W + delta) + eps)``.

    The norm is over inputs for the output axis, over outputs for the input axis (Liu et al.,
    arXiv 2402.09353; LyCORIS adds eps, PEFT adds none).

    Args:
        weight: Base weight, [O, I].
        delta: The adapter's delta, scale included.
        magnitude: [O] or [I].
        axis: Which of the two.
        eps: Added to the norm.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    adapted = weight.to(dtype) + delta_weight(delta, dtype)
    norm = adapted.norm(dim=1 if axis is GainAxis.OUTPUT else 0)
    return Gain(values=magnitude.to(dtype) / (norm + eps), axis=axis)


def _along(gain: Gain) -> Tensor:
    """Return the gain so that it broadcasts over a weight [O, I]."""
    return gain.values[:, None] if gain.axis is GainAxis.OUTPUT else gain.values[None, :]

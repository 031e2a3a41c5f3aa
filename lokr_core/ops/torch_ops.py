"""The definitions of every operation, in plain torch; kernels are faster copies of these."""

from typing import assert_never

import torch
from torch import Tensor

from lokr_core.ops.contraction import Side, cheapest_steps
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


def lokr_linear(x: Tensor, weights: LokrWeights) -> Tensor:
    """Return ``x @ delta_weight(weights).mT`` without forming the delta.

    Args:
        x: Activations, [..., N, I1 * I2]; leading dimensions match those of the factors.
        weights: Factors w1 [..., O1, I1] and w2 [..., O2, I2].

    Returns:
        [..., N, O1 * O2], in the dtype of x.
    """
    grid = x.reshape(*x.shape[:-1], weights.w1.shape[1], weights.w2.shape[1])  # [..., N, I1, I2]
    for step in cheapest_steps(weights):
        matrix = step.matrix.to(x.dtype).unsqueeze(-3)  # [..., 1, out, in]
        grid = matrix @ grid if step.side is Side.LEFT else grid @ matrix.mT
    return weights.scale * grid.flatten(-2)


def delta_linear(x: Tensor, weights: DeltaWeights) -> Tensor:
    """Return ``x @ delta_weight(weights).mT`` [..., N, O] in the cheapest form of the delta."""
    match weights:
        case LokrWeights():
            return lokr_linear(x, weights)
        case HadamardWeights():
            return x @ delta_weight(weights, x.dtype).mT
    assert_never(weights)

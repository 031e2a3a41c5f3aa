"""The definitions of every operation, in plain torch; kernels are faster copies of these."""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor

from lokr_core.ops.contraction import Side, cheapest_steps
from lokr_core.ops.geometry import ConvGeometry
from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Gain,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    ModuleWeights,
    Term,
)


def kron(w1: Tensor, w2: Tensor) -> Tensor:
    """Return ``w1 ⊗ w2`` over the last two dimensions, [..., O1 * O2, I1 * I2]."""
    blocks = w1[..., :, None, :, None] * w2[..., None, :, None, :]  # [..., O1, O2, I1, I2]
    return blocks.flatten(-2).flatten(-3, -2)


def delta_weight(weights: DeltaWeights, dtype: torch.dtype) -> Tensor:
    """Return the dense delta, [..., O, C], computed in ``dtype``."""
    match weights:
        case LokrWeights():
            w1, w2 = weights.w1.to(dtype).dense(), weights.w2.to(dtype).dense()
            return weights.scale * kron(w1, w2)
        case HadamardWeights():
            left, right = weights.left.to(dtype).dense(), weights.right.to(dtype).dense()
            return weights.scale * (left * right)
        case DenseWeights():
            return weights.scale * weights.matrix.to(dtype)
    assert_never(weights)


def terms_weight(terms: Sequence[Term], like: Tensor) -> Tensor:
    """Return the sum of terms, [O, C], each at its outputs; zeros, if there are none.

    Args:
        terms: Deltas of one module.
        like: A weight [O, C], whose dtype and device the sum has.
    """
    if len(terms) == 1 and terms[0].rows is None and terms[0].delta.shape == like.shape:
        return delta_weight(terms[0].delta, like.dtype)
    total = torch.zeros_like(like)
    for term in terms:
        delta = delta_weight(term.delta, like.dtype)
        if term.rows is not None:
            delta = delta[term.rows.start : term.rows.stop]
        total[term.outputs.start : term.outputs.stop] += delta
    return total


def adapted_weight(weight: Tensor, weights: ModuleWeights, dtype: torch.dtype) -> Tensor:
    """Return W' = gain * (W + Σ terms), [O, C], computed in ``dtype``; or what replaces W.

    A replacement may have another number of outputs.
    """
    if weights.replacement is not None and weights.replacement.weight is not None:
        return weights.replacement.weight.to(dtype)
    wide = weight.to(dtype)
    adapted = wide + terms_weight(weights.terms, wide)
    if weights.vector is not None:
        adapted = adapted + weights.vector.to(dtype)[:, None]
    if weights.gain is None:
        return adapted
    return adapted * gain_like(weights.gain, adapted)


def module_change(weight: Tensor, weights: ModuleWeights, dtype: torch.dtype) -> Tensor:
    """Return W' − W, [O, C], computed in ``dtype``; for plain terms that is their sum itself."""
    if weights.is_sum_of_terms:
        return terms_weight(weights.terms, weight.to(dtype))
    return adapted_weight(weight, weights, dtype) - weight.to(dtype)


def bias_change(bias: Tensor | None, weights: ModuleWeights, dtype: torch.dtype) -> Tensor | None:
    """Return b' − b, [O], computed in ``dtype``, or None if the bias stays what it is.

    A base without a bias has one of zeros.
    """
    replaced = None if weights.replacement is None else weights.replacement.bias
    if replaced is not None:
        return replaced.to(dtype) - (0 if bias is None else bias.to(dtype))
    return None if weights.bias is None else weights.bias.to(dtype)


def dora_gain(
    weight: Tensor, terms: Sequence[Term], magnitude: Tensor, axis: GainAxis, eps: float
) -> Gain:
    """Return DoRA's gain ``magnitude / (norm(W + Σ terms) + eps)``.

    The norm is over inputs for the output axis, over outputs for the input axis (Liu et al.,
    arXiv 2402.09353; LyCORIS adds eps, PEFT adds none).

    Args:
        weight: Base weight, [O, C].
        terms: The adapter's deltas, scale included.
        magnitude: [O] or [I]; a convolution's columns C are (I, *kernel).
        axis: Which of the two.
        eps: Added to the norm.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    wide = weight.to(dtype)
    adapted = wide + terms_weight(terms, wide)
    if axis is GainAxis.OUTPUT:
        norm = adapted.norm(dim=1)
    else:
        norm = adapted.unflatten(1, (len(magnitude), -1)).norm(dim=(0, 2))
    return Gain(values=magnitude.to(dtype) / (norm + eps), axis=axis)


def gain_like(gain: Gain, weight: Tensor) -> Tensor:
    """Return a gain so that it broadcasts over a weight [O, C], in its dtype."""
    values = gain.values.to(weight.dtype)
    if gain.axis is GainAxis.OUTPUT:
        return values[:, None]
    return values.repeat_interleave(weight.shape[1] // len(values))[None, :]


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
        case HadamardWeights() | DenseWeights():
            return x @ delta_weight(weights, x.dtype).mT
    assert_never(weights)


def delta_conv(x: Tensor, delta: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return the convolution of x with a dense delta, window by window.

    Args:
        x: Samples, [N, C, *S].
        delta: [O, C / groups * K], columns in the order (channels of one group, *kernel).
        geometry: Of the base module.

    Returns:
        [N, O, *S'].
    """
    windows = geometry.padded(x)
    for axis, kernel in enumerate(geometry.kernel):
        dilation = geometry.dilation[axis]
        span = dilation * (kernel - 1) + 1
        windows = windows.unfold(2 + axis, span, geometry.stride[axis])[..., ::dilation]
    num_axes = len(geometry.kernel)
    windows = windows.unflatten(1, (geometry.groups, -1))  # [N, G, C / G, *S', *k]
    taps = range(3 + num_axes, 3 + 2 * num_axes)
    columns = windows.movedim(tuple(taps), tuple(range(3, 3 + num_axes)))
    columns = columns.flatten(2, 2 + num_axes)  # [N, G, C / G * K, *S']
    blocks = delta.unflatten(0, (geometry.groups, -1))  # [G, O / G, C / G * K]
    return torch.einsum("goc,ngc...->ngo...", blocks, columns).flatten(1, 2)


def delta_embedding(ids: Tensor, weights: LokrWeights) -> Tensor:
    """Return rows ``ids`` of ``delta_weight(weights)`` without forming the delta.

    Args:
        ids: Token ids, [N].
        weights: Factors w1 [O1, I1] and w2 [O2, I2]; the delta is [O1 * O2, I1 * I2].

    Returns:
        [N, I1 * I2], in the dtype of the factors.
    """
    num_rows = weights.w2.shape[0]
    first, second = weights.w1.dense()[ids // num_rows], weights.w2.dense()[ids % num_rows]
    return weights.scale * (first[:, :, None] * second[:, None, :]).flatten(1)


def adapted_bias(bias: Tensor | None, weights: ModuleWeights, dtype: torch.dtype) -> Tensor | None:
    """Return b' = b + bias delta, [O], computed in ``dtype``; or what replaces b.

    A replacement may have another number of outputs.
    """
    replaced = None if weights.replacement is None else weights.replacement.bias
    if replaced is not None:
        return replaced.to(dtype)
    wide = None if bias is None else bias.to(dtype)
    if weights.bias is None:
        return wide
    return weights.bias.to(dtype) + (0 if wide is None else wide)

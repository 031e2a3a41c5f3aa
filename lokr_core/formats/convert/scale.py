"""Scales as a layout tells them: an alpha beside a rank, or a scale folded into a factor."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Leaves = Mapping[str, Tensor]

_RANKS = ("lokr_w2_b", "lokr_w1_b", "hada_w1_b", "lora_down", "lora_embedding_A")
_FLOAT64_BITS = 53
_BITS = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: _FLOAT64_BITS}


def rank_of(leaves: Leaves) -> int | None:
    """Return what alpha is divided by; None if no factor is low-rank."""
    return next((leaves[leaf].shape[0] for leaf in _RANKS if leaf in leaves), None)


def alpha_for(scale: float, rank: int) -> float:
    """Return the alpha for which ``alpha / rank`` is the scale, or the nearest there is."""
    alpha = scale * rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    return next((value for value in near if value / rank == scale), alpha)


def alpha_tensor(alpha: float) -> Tensor:
    """Return an alpha as a tensor that holds it exactly."""
    narrow = torch.tensor(alpha, dtype=torch.float32)
    return narrow if float(narrow) == alpha else torch.tensor(alpha, dtype=torch.float64)


def folded(factor: Tensor, scale: float) -> Tensor | None:
    """Return ``scale * factor`` in the factor's dtype, or None if that would round."""
    if scale == 1:
        return factor
    if _mantissa_bits(scale) + _BITS[factor.dtype] > _FLOAT64_BITS and _mantissa_bits(scale) > 1:
        return None
    product = factor.double() * scale
    rounded = product.to(factor.dtype)
    is_exact = torch.equal(rounded.double(), product) and torch.equal(
        product / scale, factor.double()
    )
    return rounded if is_exact else None


def _mantissa_bits(value: float) -> int:
    numerator, _ = value.as_integer_ratio()
    return (numerator // (numerator & -numerator)).bit_length() if numerator else 0


def with_identity(w1: Tensor) -> dict[str, Tensor]:
    """Return w1 as a product with the identity, so that an alpha can tell the scale exactly."""
    rows, cols = w1.shape
    if rows < cols:
        return {"lokr_w1_a": torch.eye(rows, dtype=w1.dtype), "lokr_w1_b": w1}
    return {"lokr_w1_a": w1, "lokr_w1_b": torch.eye(cols, dtype=w1.dtype)}

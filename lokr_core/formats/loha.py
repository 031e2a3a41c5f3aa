"""LoHa: the element-wise product of two low-rank products, each with a Tucker core or without."""

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.binding import FileModule
from lokr_core.formats.parts import DeltaForm, FormContext, as_lora, low_rank, required, tucker
from lokr_core.formats.tensors import core
from lokr_core.weights import DeltaWeights, HadamardWeights, LowRankFactor, TuckerFactor

LEAVES = frozenset({f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")})

_Half = LowRankFactor | TuckerFactor


def read_loha(module: FileModule, context: FormContext) -> DeltaForm:
    """Return what the factors of a LoHa amount to.

    Raises:
        AdapterTensorError: A factor is unusable, lacks its partner, or does not fit the others.
        AdapterMismatchError: They do not multiply out to the base weight.
    """
    has_core = "hada_t1" in module.by_leaf or "hada_t2" in module.by_leaf
    halves = [_half(module, index, has_core, context.shape.kernel) for index in (1, 2)]
    left, right = halves
    if left.shape != right.shape:
        key = module.by_leaf["hada_w2_a"].key
        raise AdapterTensorError(key, f"gives {right.shape}, but its first half is {left.shape}")
    context.shape.check(left.shape)  # before anything is multiplied out
    delta = _smaller_form(left, right, context.dtype)
    return DeltaForm(algorithm="loha", delta=delta, rank=left.b.shape[0])


def _half(module: FileModule, index: int, has_core: bool, kernel: tuple[int, ...]) -> _Half:
    leaf_a, leaf_b = f"hada_w{index}_a", f"hada_w{index}_b"
    if not has_core:
        return low_rank(module, leaf_a, leaf_b, kernel)
    a, b = required(module, leaf_a), required(module, leaf_b)
    middle = core(required(module, f"hada_t{index}"), kernel)
    return tucker(middle, a, b, is_transposed=False)


def _smaller_form(left: _Half, right: _Half, dtype: torch.dtype) -> DeltaWeights:
    """Return ``left ⊙ right`` as a LoRA of the product of their ranks, unless that is larger.

    The Khatri-Rao products are kept in ``dtype`` or wider: in half precision they would round.
    """
    num_out, columns = left.shape
    if _khatri_rao_size(left, right) > num_out * columns:
        return HadamardWeights(left=left, right=right, scale=1.0)
    dtype = torch.promote_types(dtype, left.a.dtype)
    left, right = left.to(dtype), right.to(dtype)
    if isinstance(left, TuckerFactor) and isinstance(right, TuckerFactor):
        cores = left.core[:, None, :, None] * right.core[None, :, None, :]  # [R, R', R, R', K]
        product = TuckerFactor(
            core=cores.flatten(2, 3).flatten(0, 1),
            a=_row_products(left.a, right.a),
            b=_row_products(left.b, right.b),
        )
        return as_lora(product)
    up = _row_products(left.a.mT, right.a.mT).mT
    return as_lora(LowRankFactor(a=up, b=_row_products(left.b, right.b)))


def _khatri_rao_size(left: _Half, right: _Half) -> int:
    """Return the numbers in the Khatri-Rao products of two halves."""
    size = left.a.numel() * _rank_a(right) + left.b.numel() * right.b.shape[0]
    if isinstance(left, TuckerFactor) and isinstance(right, TuckerFactor):
        size += left.core.numel() * right.core.shape[0] * right.core.shape[1]
    return size


def _rank_a(half: _Half) -> int:
    return half.a.shape[0] if isinstance(half, TuckerFactor) else half.a.shape[1]


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the element-wise product of every row of one with every row of the other."""
    return (left[:, None, :] * right[None, :, :]).flatten(0, 1)  # [R * R', cols]

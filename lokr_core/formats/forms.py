"""DeltaForm: what the factors of one module amount to, whichever algorithm they come from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.keys import ModuleTensors, NamedTensor
from lokr_core.weights import (
    DeltaWeights,
    Factor,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ALGORITHMS = {"lokr": "lokr", "hada": "loha", "lora": "lora"}
_SPELLINGS = {"lora_up": "lora_up or lora_B", "lora_down": "lora_down or lora_A"}
_BESIDE_FACTORS = ("alpha", "dora_scale", "lora_magnitude_vector")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeltaForm:
    """The delta of one module at scale 1, before its scale is known."""

    algorithm: str
    delta: DeltaWeights
    rank: int | None  # what alpha is divided by; None if no factor is low-rank


def read_form(tensors: ModuleTensors, dtype: torch.dtype) -> DeltaForm:
    """Return what the factors of a module amount to.

    Args:
        tensors: The module's tensors.
        dtype: What a product of factors is kept in, if the file's own dtype is not wider.

    Raises:
        AdapterTensorError: A factor is unusable, lacks its partner, or comes in two forms.
    """
    match _algorithm(tensors):
        case "lokr":
            return _read_lokr(tensors)
        case "loha":
            return _read_loha(tensors, dtype)
        case _:
            return _read_lora(tensors)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and nothing infinite, in one pass without copies."""
    low, high = tensor.aminmax()  # NaN wins over any number
    return math.isfinite(low.item()) and math.isfinite(high.item())


def checked(entry: NamedTensor, num_dims: int = 2) -> Tensor:
    """Return a tensor that factors may be made of.

    Raises:
        AdapterTensorError: It is not floating point, of another number of dimensions, empty, or
            not finite.
    """
    tensor = entry.value
    if tensor.dtype not in DTYPES:
        raise AdapterTensorError(entry.key, f"is {tensor.dtype}, which no factor may be")
    if tensor.ndim != num_dims:
        raise AdapterTensorError(
            entry.key,
            f"is {tuple(tensor.shape)}, but a linear module needs {num_dims} dimensions here; "
            "convolutions are not served",
        )
    if tensor.numel() == 0:
        raise AdapterTensorError(entry.key, f"is empty: {tuple(tensor.shape)}")
    if not is_finite(tensor):
        raise AdapterTensorError(entry.key, "holds NaN or infinite values")
    return tensor


def _algorithm(tensors: ModuleTensors) -> str:
    found: dict[str, str] = {}
    for leaf, entry in tensors.by_leaf.items():
        if leaf not in _BESIDE_FACTORS:
            found.setdefault(_ALGORITHMS[leaf[:4]], entry.key)
    if not found:
        key = next(iter(tensors.by_leaf.values())).key
        raise AdapterTensorError(key, "stands alone: the file has no factors for its module")
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise AdapterTensorError(second, f"changes the same module as {first!r} in another way")
    return next(iter(found))


def _no_partner(tensors: ModuleTensors, missing: str) -> AdapterTensorError:
    """Return the error for a leaf that is not there; it names a tensor of the same factor."""
    factors = [leaf for leaf in tensors.by_leaf if leaf not in _BESIDE_FACTORS]
    nearest = max(factors, key=lambda leaf: leaf[:7] == missing[:7])  # such as lokr_w2
    spelling = _SPELLINGS.get(missing, repr(missing))
    return AdapterTensorError(tensors.by_leaf[nearest].key, f"has no partner {spelling}")


def _low_rank(tensors: ModuleTensors, leaf_a: str, leaf_b: str) -> LowRankFactor:
    for leaf in (leaf_a, leaf_b):
        if leaf not in tensors.by_leaf:
            raise _no_partner(tensors, leaf)
    a, b = tensors.by_leaf[leaf_a], tensors.by_leaf[leaf_b]
    left, right = checked(a), checked(b)
    if left.shape[1] != right.shape[0]:
        problem = f"is {tuple(left.shape)}, but its partner {b.key!r} is {tuple(right.shape)}"
        raise AdapterTensorError(a.key, problem)
    return LowRankFactor(a=left, b=right)


def _lokr_factor(tensors: ModuleTensors, leaf: str) -> Factor:
    full = tensors.by_leaf.get(leaf)
    parts = [name for name in (f"{leaf}_a", f"{leaf}_b") if name in tensors.by_leaf]
    if full is not None and parts:
        key = tensors.by_leaf[parts[0]].key
        raise AdapterTensorError(key, f"comes beside {full.key!r}: two forms of a factor")
    if full is not None:
        return FullFactor(matrix=checked(full))
    if not parts:
        raise _no_partner(tensors, leaf)
    return _low_rank(tensors, f"{leaf}_a", f"{leaf}_b")


def _read_lokr(tensors: ModuleTensors) -> DeltaForm:
    w1, w2 = _lokr_factor(tensors, "lokr_w1"), _lokr_factor(tensors, "lokr_w2")
    ranks = [factor.b.shape[0] for factor in (w2, w1) if isinstance(factor, LowRankFactor)]
    delta = LokrWeights(w1=w1, w2=w2, scale=1.0)
    return DeltaForm(algorithm="lokr", delta=delta, rank=ranks[0] if ranks else None)


def _read_lora(tensors: ModuleTensors) -> DeltaForm:
    product = _low_rank(tensors, "lora_up", "lora_down")
    one = FullFactor(matrix=torch.ones(1, 1, dtype=product.a.dtype))
    delta = LokrWeights(w1=one, w2=product, scale=1.0)
    return DeltaForm(algorithm="lora", delta=delta, rank=product.b.shape[0])


def _read_loha(tensors: ModuleTensors, dtype: torch.dtype) -> DeltaForm:
    left = _low_rank(tensors, "hada_w1_a", "hada_w1_b")
    right = _low_rank(tensors, "hada_w2_a", "hada_w2_b")
    if left.shape != right.shape:
        key = tensors.by_leaf["hada_w2_a"].key
        raise AdapterTensorError(key, f"gives {right.shape}, but its first half is {left.shape}")
    return DeltaForm(algorithm="loha", delta=_hadamard(left, right, dtype), rank=left.b.shape[0])


def _hadamard(left: LowRankFactor, right: LowRankFactor, dtype: torch.dtype) -> DeltaWeights:
    """Return ``left ⊙ right`` as a LoRA of the product of their ranks, unless that is larger.

    The Khatri-Rao products are kept in ``dtype`` or wider: in half precision they would round.
    """
    num_out, num_in = left.shape
    rank = left.b.shape[0] * right.b.shape[0]
    if rank * (num_out + num_in) > num_out * num_in:
        return HadamardWeights(left=left, right=right, scale=1.0)
    dtype = torch.promote_types(dtype, left.a.dtype)
    left, right = left.to(dtype), right.to(dtype)
    up = (left.a[:, :, None] * right.a[:, None, :]).reshape(num_out, rank)
    down = (left.b[:, None, :] * right.b[None, :, :]).reshape(rank, num_in)
    one = FullFactor(matrix=torch.ones(1, 1, dtype=dtype))
    return LokrWeights(w1=one, w2=LowRankFactor(a=up, b=down), scale=1.0)

"""Parts of a module's tensors: partners that belong together, and what is wrong if one is gone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.tensors import WeightShape, matrix
from lokr_core.weights import DeltaWeights, FullFactor, LokrWeights, LowRankFactor, TuckerFactor

_SPELLINGS = {"lora_up": "lora_up or lora_B", "lora_down": "lora_down or lora_A"}
_FACTORS = ("lokr_", "hada_", "lora_up", "lora_down", "lora_mid", "lora_embedding", "bias_")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeltaForm:
    """The delta of one module at scale 1, before its scale is known."""

    algorithm: str
    delta: DeltaWeights
    rank: int | None  # what alpha is divided by; None if no factor is low-rank
    has_ratio: bool = True  # whether alpha has a say; it has none in a full delta


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FormContext:
    """What a form depends on beside its tensors."""

    shape: WeightShape
    dtype: torch.dtype  # of products of factors, if the file's own is not wider
    is_peft: bool


def required(module: FileModule, leaf: str) -> NamedTensor:
    """Return a tensor that others of its module are of no use without.

    Raises:
        AdapterTensorError: It is not there; the error names one of the others.
    """
    entry = module.by_leaf.get(leaf)
    if entry is not None:
        return entry
    factors = [name for name in module.by_leaf if name.startswith(_FACTORS)]
    nearest = max(factors, key=lambda name: name[:7] == leaf[:7])  # such as lokr_w2
    spelling = _SPELLINGS.get(leaf, repr(leaf))
    raise AdapterTensorError(module.by_leaf[nearest].key, f"has no partner {spelling}")


def low_rank(
    module: FileModule, leaf_a: str, leaf_b: str, kernel: tuple[int, ...]
) -> LowRankFactor:
    """Return the product of two tensors, of which the second holds the kernel.

    Raises:
        AdapterTensorError: One is missing or unusable, or they do not fit each other.
    """
    a, b = required(module, leaf_a), required(module, leaf_b)
    left, right = matrix(a), matrix(b, kernel)
    _check_inner(a, b, left.shape[1] == right.shape[0])
    return LowRankFactor(a=left, b=right)


def tucker(core: Tensor, a: NamedTensor, b: NamedTensor, *, is_transposed: bool) -> TuckerFactor:
    """Return a core with its two sides.

    Args:
        core: [R1, R2, K].
        a: [R1, rows]; or [rows, R1], if ``is_transposed``.
        b: [R2, cols].
        is_transposed: Whether ``a`` has its rows first.

    Raises:
        AdapterTensorError: A side is unusable, or does not fit the core.
    """
    left, right = matrix(a), matrix(b)
    if is_transposed:
        left = left.mT
    for entry, side, rank in ((a, left, core.shape[0]), (b, right, core.shape[1])):
        if side.shape[0] != rank:
            shape = tuple(entry.value.shape)
            raise AdapterTensorError(entry.key, f"is {shape}, but its core has rank {rank}")
    return TuckerFactor(core=core, a=left, b=right)


def as_lora(product: LowRankFactor | TuckerFactor) -> LokrWeights:
    """Return a product as the LoKr whose w1 is the number 1."""
    one = FullFactor(matrix=torch.ones(1, 1, dtype=product.a.dtype))
    return LokrWeights(w1=one, w2=product, scale=1.0)


def _check_inner(a: NamedTensor, b: NamedTensor, is_equal: bool) -> None:
    if not is_equal:
        left, right = tuple(a.value.shape), tuple(b.value.shape)
        raise AdapterTensorError(a.key, f"is {left}, but its partner {b.key!r} is {right}")

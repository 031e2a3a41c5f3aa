"""LoKr in all its forms: each factor whole or a product, the second also with a Tucker core."""

import math

from torch import Tensor

from lokr_core.errors import AdapterTensorError
from lokr_core.formats.binding import FileModule
from lokr_core.formats.parts import DeltaForm, FormContext, low_rank, required, tucker
from lokr_core.formats.tensors import core, matrix
from lokr_core.ops.torch_ops import kron
from lokr_core.spec import ModuleKind
from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    Factor,
    FullFactor,
    LokrWeights,
    LowRankFactor,
    TuckerFactor,
)

LEAVES = frozenset({f"lokr_w{i}{part}" for i in (1, 2) for part in ("", "_a", "_b")} | {"lokr_t2"})


def read_lokr(module: FileModule, context: FormContext) -> DeltaForm:
    """Return what the factors of a LoKr amount to.

    Raises:
        AdapterTensorError: A factor is unusable, lacks its partner, or comes in two forms.
        AdapterMismatchError: They do not multiply out to the base weight.
    """
    w1 = _factor(module, "lokr_w1", ())
    w2 = _factor(module, "lokr_w2", context.shape.kernel)
    delta: DeltaWeights = LokrWeights(w1=w1, w2=w2, scale=1.0)
    context.shape.check(delta.shape)
    _check_holds_kernel(module, w2, context.shape.kernel)
    full = module.by_leaf.get("lokr_w2")
    is_conv1d = context.shape.kind is ModuleKind.CONV and len(context.shape.kernel) == 1
    if context.is_peft and is_conv1d and full is not None and full.value.ndim == 3:
        delta = _as_peft_reshapes(w1, full.value, context)
    ranks = [factor.b.shape[0] for factor in (w2, w1) if not isinstance(factor, FullFactor)]
    return DeltaForm(algorithm="lokr", delta=delta, rank=ranks[0] if ranks else None)


def _factor(module: FileModule, leaf: str, kernel: tuple[int, ...]) -> Factor:
    full = module.by_leaf.get(leaf)
    core_leaf = leaf.replace("_w", "_t")
    parts = [name for name in (f"{leaf}_a", f"{leaf}_b", core_leaf) if name in module.by_leaf]
    if full is not None and parts:
        key = module.by_leaf[parts[0]].key
        raise AdapterTensorError(key, f"comes beside {full.key!r}: two forms of a factor")
    if full is not None or not parts:
        return FullFactor(matrix=matrix(required(module, leaf), kernel))
    return _product(module, leaf, module.by_leaf.get(core_leaf) is not None, kernel)


def _product(
    module: FileModule, leaf: str, has_core: bool, kernel: tuple[int, ...]
) -> LowRankFactor | TuckerFactor:
    leaf_a, leaf_b = f"{leaf}_a", f"{leaf}_b"
    if not has_core:
        return low_rank(module, leaf_a, leaf_b, kernel)
    entry = required(module, leaf.replace("_w", "_t"))
    a, b = required(module, leaf_a), required(module, leaf_b)
    return tucker(core(entry, kernel), a, b, is_transposed=False)


def _check_holds_kernel(module: FileModule, w2: Factor, kernel: tuple[int, ...]) -> None:
    """Check that the kernel is all of it w2's: w1 has none."""
    if w2.shape[1] % math.prod(kernel):
        entry = module.by_leaf.get("lokr_w2") or module.by_leaf["lokr_w2_b"]
        found = tuple(entry.value.shape)
        raise AdapterTensorError(entry.key, f"is {found}, which does not hold the kernel {kernel}")


def _as_peft_reshapes(w1: Factor, w2: Tensor, context: FormContext) -> DenseWeights:
    """Return what PEFT trains on a Conv1d with a whole w2 [O2, I2, K].

    It takes the product over the last two dimensions, as those of a matrix, and reads the result
    [O2, O1 * I2, I1 * K] as [O1 * O2, I1 * I2, K]: another matrix, which has no factors.
    """
    blocks = kron(w1.to(context.dtype).dense(), w2.to(context.dtype))
    return DenseWeights(
        matrix=blocks.reshape(context.shape.out_features, context.shape.columns), scale=1.0
    )

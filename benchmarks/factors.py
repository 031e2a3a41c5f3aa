"""Adapters of every form, of random factors, for one layer."""

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import torch
from torch import Tensor

from lokr_core import Adapter, AdapterInfo, AdapterRef
from lokr_core.packing import pack
from lokr_core.spec import ModelSpec, ModuleSpec
from lokr_core.weights import (
    DeltaWeights,
    FullFactor,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
    TuckerFactor,
)

RANK = 8
FACTOR = 8  # rows and columns of w1, where they divide the layer's


class Form(Enum):
    """How an adapter keeps its delta."""

    FULL = "LoKr, both factors whole"
    LOW_RANK = "LoKr, w2 of low rank"
    TUCKER = "LoKr, w2 a Tucker form"
    LORA = "LoRA"
    LOHA = "LoHa of rank 8"
    LARGE_LOHA = "LoHa of rank 64"
    VECTOR = "a change of the weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of a layer's matrix."""

    path: str
    outs: int
    ins: int  # without taps
    taps: int

    @classmethod
    def of(cls, module: ModuleSpec) -> "Sizes":
        """Return the sizes of a module."""
        taps = torch.Size(module.kernel).numel()
        return cls(path=module.path, outs=module.out_features, ins=module.in_features, taps=taps)


def adapter_of(spec: ModelSpec, form: Form, sizes: Sizes, seed: int) -> Adapter:
    """Return an adapter of random factors that changes one module."""
    torch.manual_seed(seed)
    packed = pack({sizes.path: _weights(form, sizes)})
    info = AdapterInfo(
        format="lycoris",
        algorithms=(),
        digest="",
        num_parameters=packed.buffer.numel(),
        scales=(),
    )
    return Adapter(
        ref=AdapterRef(adapter_id=f"adapter-{seed}", version=form.name),
        spec=spec,
        layout=spec.shared_layout(packed.layout),
        buffer=packed.buffer,
        scales=packed.scales,
        info=info,
    )


def _weights(form: Form, sizes: Sizes) -> ModuleWeights:
    if form is Form.VECTOR:
        return ModuleWeights(vector=_draw(sizes.outs))
    return ModuleWeights.of(_delta(form, sizes))


def _delta(form: Form, sizes: Sizes) -> DeltaWeights:
    outs, columns = sizes.outs, sizes.ins * sizes.taps
    w1 = FullFactor(matrix=_draw(FACTOR, FACTOR))
    rows, cols = outs // FACTOR, columns // FACTOR
    match form:
        case Form.FULL:
            return LokrWeights(w1=w1, w2=FullFactor(matrix=_draw(rows, cols)), scale=1.0)
        case Form.LOW_RANK:
            return LokrWeights(w1=w1, w2=_low_rank(rows, cols), scale=1.0)
        case Form.TUCKER:
            core = _draw(RANK, RANK, sizes.taps)
            sides = _draw(RANK, rows), _draw(RANK, sizes.ins // FACTOR)
            w2 = TuckerFactor(core=core, a=sides[0], b=sides[1])
            return LokrWeights(w1=w1, w2=w2, scale=1.0)
        case Form.LORA:
            one = FullFactor(matrix=torch.ones(1, 1))
            return LokrWeights(w1=one, w2=_low_rank(outs, columns), scale=1.0)
        case Form.LOHA:  # as files are read, unless that is larger than the factors
            one = FullFactor(matrix=torch.ones(1, 1))
            return LokrWeights(w1=one, w2=_low_rank(outs, columns, RANK**2), scale=1.0)
        case Form.LARGE_LOHA:
            left, right = (_low_rank(outs, columns, 64) for _ in range(2))
            return HadamardWeights(left=left, right=right, scale=1.0)
        case Form.VECTOR:
            raise ValueError("a vector is no delta of a product")
    assert_never(form)


def _low_rank(rows: int, cols: int, rank: int = RANK) -> LowRankFactor:
    return LowRankFactor(a=_draw(rows, rank), b=_draw(rank, cols))


def _draw(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape)

"""Random changes of a layer: everything that the weights of a module can say."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from lokr_core.weights import (
    DeltaWeights,
    DenseWeights,
    FullFactor,
    Gain,
    GainAxis,
    HadamardWeights,
    LokrWeights,
    LowRankFactor,
    ModuleWeights,
    Replacement,
    Rows,
    Term,
    TuckerFactor,
)
from tests.core.factors import draw, low_rank, random_factor
from tests.core.layers.subjects import SMALL, Subject

SCALES = st.sampled_from([1.0, -0.5, 2.25])
SEEDS = st.integers(0, 2**20)


def _tucker(rows: int, cols: int, taps: int, seed: int) -> TuckerFactor:
    return TuckerFactor(
        core=draw(2, 3, taps, seed=seed),
        a=draw(2, rows, seed=seed + 1),
        b=draw(3, cols, seed=seed + 2),
    )


@st.composite
def _deltas(drawing: st.DrawFn, subject: Subject, outs: tuple[int, int]) -> DeltaWeights:
    """Draw a delta of ``outs`` outputs."""
    seed, taps = drawing(SEEDS), subject.num_taps
    (o1, o2), (i1, i2) = outs, subject.ins
    ranks = st.none() | st.integers(1, 2)
    forms = ["lokr", "lora", "hadamard", "dense"] + ["tucker", "both tucker"] * bool(subject.kernel)
    scale = drawing(SCALES)
    match drawing(st.sampled_from(forms)):
        case "lokr":
            w1 = random_factor(o1, i1, drawing(ranks), seed)
            w2 = random_factor(o2, i2 * taps, drawing(ranks), seed + 5)
            return LokrWeights(w1=w1, w2=w2, scale=scale)
        case "lora":
            one = FullFactor(matrix=torch.ones(1, 1, dtype=torch.float64))
            w2 = low_rank(o1 * o2, subject.num_columns, 2, seed)
            return LokrWeights(w1=one, w2=w2, scale=scale)
        case "tucker":
            w1 = random_factor(o1, i1, drawing(ranks), seed)
            return LokrWeights(w1=w1, w2=_tucker(o2, i2, taps, seed + 5), scale=scale)
        case "both tucker":
            left, right = (_tucker(o1 * o2, i1 * i2, taps, seed + n) for n in (0, 5))
            return HadamardWeights(left=left, right=right, scale=scale)
        case "hadamard":
            sides: list[LowRankFactor] = [
                low_rank(o1 * o2, subject.num_columns, 2, seed + n) for n in (0, 5)
            ]
            return HadamardWeights(left=sides[0], right=sides[1], scale=scale)
        case _:
            matrix = draw(o1 * o2, subject.num_columns, seed=seed)
            return DenseWeights(matrix=matrix, scale=scale)


@st.composite
def _terms(drawing: st.DrawFn, subject: Subject) -> Term:
    """Draw a term of all outputs, or some outputs of a delta of its own size."""
    if drawing(st.booleans()):
        return Term(delta=drawing(_deltas(subject, subject.outs)))
    outs = drawing(SMALL), drawing(SMALL)
    total = outs[0] * outs[1]
    start = drawing(st.integers(0, total - 1))
    stop = drawing(st.integers(start + 1, min(total, start + subject.num_outputs)))
    at = drawing(st.integers(0, subject.num_outputs - (stop - start)))
    delta = drawing(_deltas(subject, outs))
    return Term(delta=delta, rows=Rows(start=start, stop=stop), at=at)


@st.composite
def _gains(drawing: st.DrawFn, subject: Subject) -> Gain:
    axis = drawing(st.sampled_from(GainAxis))
    size = subject.num_outputs if axis is GainAxis.OUTPUT else subject.ins[0] * subject.ins[1]
    return Gain(values=draw(size, seed=drawing(SEEDS)).abs() + 0.5, axis=axis)


@st.composite
def _norm_changes(
    drawing: st.DrawFn, width: int, bias: Tensor | None, replacement: Replacement | None
) -> ModuleWeights:
    """Draw a vector, or a column without factors."""
    seed = drawing(SEEDS)
    if drawing(st.booleans()):
        vector = draw(width, seed=seed)
        return ModuleWeights(vector=vector, bias=bias, replacement=replacement)
    column = DenseWeights(matrix=draw(width, 1, seed=seed), scale=drawing(SCALES))
    return ModuleWeights(terms=(Term(delta=column),), bias=bias, replacement=replacement)


@st.composite
def changes(drawing: st.DrawFn, subject: Subject, *, can_replace: bool = True) -> ModuleWeights:
    """Draw what an adapter does to a layer."""
    seed, num_outputs = drawing(SEEDS), subject.num_outputs
    has_bias = subject.kind != "embedding"
    if can_replace and drawing(st.integers(0, 3)) == 0:
        weight = draw(num_outputs, subject.num_columns, seed=seed)
        bias = draw(num_outputs, seed=seed + 1) if has_bias and drawing(st.booleans()) else None
        return ModuleWeights(replacement=Replacement(weight=weight, bias=bias))
    bias = draw(num_outputs, seed=seed + 1) if has_bias and drawing(st.booleans()) else None
    replacement = None
    if can_replace and bias is not None and drawing(st.booleans()):
        replacement, bias = Replacement(bias=bias), None
    if subject.kind == "norm":
        return drawing(_norm_changes(num_outputs, bias, replacement))
    return ModuleWeights(
        terms=tuple(drawing(st.lists(_terms(subject), min_size=1, max_size=2))),
        gain=drawing(_gains(subject)) if drawing(st.integers(0, 2)) == 0 else None,
        bias=bias,
        replacement=replacement,
    )

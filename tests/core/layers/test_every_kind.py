"""Every kind of layer under every change: unmerged, merged, and the definition agree."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lokr_core import Adapter, AdapterMix, attach
from lokr_core.adapted import ApplyWord
from lokr_core.mix import module_weight
from lokr_core.ops.torch_ops import bias_change, module_change
from tests.core.factors import build_adapter
from tests.core.layers.changes import changes
from tests.core.layers.subjects import Host, Subject, convs, embeddings, linears, norms

KINDS = {"linear": linears(), "conv": convs(), "embedding": embeddings(), "norm": norms()}
PATH = "layer"
WEIGHTS = st.sampled_from([1.0, 0.5, -1.5])
# RMS norms of transformers compute in float32, whatever the dtype.
TOLERANCES = {"norm": 1e-5}


class Bench:
    """A layer, and adapters of it."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.host: Host = subject.host()
        self.adapted = attach(self.host)
        self.adapters: list[Adapter] = []

    def run(self, x: Tensor, mixes: Sequence[AdapterMix], apply: ApplyWord) -> Tensor:
        """Return the layer's output."""
        with self.adapted.using(mixes, apply):
            out: Tensor = self.host(x)
        return out

    def define(self, x: Tensor, mix: AdapterMix) -> Tensor:
        """Return what the definition gives: a layer of the mix's weight and bias."""
        spec = self.adapted.spec.modules[PATH]
        weight, bias = spec.weight.clone(), spec.bias
        for part in mix.parts:
            adapter = next(adapter for adapter in self.adapters if adapter.ref == part.ref)
            factor, module = module_weight(part, PATH), adapter.module(PATH)
            weight += factor * module_change(spec.weight, module, torch.float64)
            change = bias_change(spec.bias, module, torch.float64)
            if change is not None:
                bias = factor * change + (0 if bias is None else bias)
        return self.subject.define(x, weight, bias)


def assert_close(found: Tensor, wanted: Tensor, kind: str) -> None:
    """Compare with the tolerance of a kind."""
    tolerance = TOLERANCES.get(kind, 1e-10)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=10 * tolerance)


# Adapters of a row's mix; the last of three replaces nothing, so it goes with any.
ROWS = st.sampled_from([(), (0,), (1,), (2,), (0, 2), (1, 2)])


def draw_adapters(data: st.DataObject, bench: Bench) -> None:
    """Draw three adapters of the layer."""
    made = [data.draw(changes(bench.subject)) for _ in range(2)]
    made.append(data.draw(changes(bench.subject, can_replace=False)))
    for n, module in enumerate(made):
        bench.adapters.append(build_adapter(bench.adapted.spec, f"a{n}", {PATH: module}))
        bench.adapted.add(bench.adapters[-1])


def drawn_mixes(data: st.DataObject, bench: Bench, count: int) -> list[AdapterMix]:
    """Draw the mix of each row."""
    return [
        AdapterMix.of({bench.adapters[n]: data.draw(WEIGHTS) for n in data.draw(ROWS)})
        for _ in range(count)
    ]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_both_ways_are_the_definition(kind: str, data: st.DataObject) -> None:
    """Rows of one batch carry any mixes; those of the base do not feel the others."""
    subject = data.draw(KINDS[kind])
    bench = Bench(subject)
    draw_adapters(data, bench)
    count = data.draw(st.integers(1, 4))
    mixes, x = drawn_mixes(data, bench, count), subject.inputs(count, seed=3)
    plain = bench.run(x, [AdapterMix()], "unmerged")

    unmerged = bench.run(x, mixes, "unmerged")
    merged = bench.run(x, mixes, "merged")

    for index, mix in enumerate(mixes):
        row = slice(index, index + 1)
        if mix.is_base:
            assert torch.equal(unmerged[row], plain[row])
            assert torch.equal(merged[row], plain[row])
        wanted = bench.define(x[row], mix)
        assert_close(unmerged[row], wanted, kind)
        assert_close(merged[row], wanted, kind)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@pytest.mark.parametrize("kind", ["linear", "conv", "norm"])
@given(data=st.data())
def test_gradients_are_those_of_the_definition(kind: str, data: st.DataObject) -> None:
    """Whoever differentiates through a served model gets what the dense weights would give."""
    subject = data.draw(KINDS[kind])
    bench = Bench(subject)
    draw_adapters(data, bench)
    mixes, x = drawn_mixes(data, bench, 2), subject.inputs(2, seed=3)
    rows = [row.clone().requires_grad_() for row in x.split(1)]
    inputs = x.clone().requires_grad_()

    bench.run(inputs, mixes, "unmerged").square().sum().backward()

    for index, (row, mix) in enumerate(zip(rows, mixes, strict=True)):
        bench.define(row, mix).square().sum().backward()
        assert inputs.grad is not None
        assert row.grad is not None
        assert_close(inputs.grad[index : index + 1], row.grad, kind)

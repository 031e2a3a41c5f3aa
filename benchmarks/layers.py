"""layers: each kind of layer with each form of adapter, against applying the dense delta.

The baseline does what PEFT does: for the rows of each adapter it forms the delta and adds what the
layer gives with the delta for its weight. Operations are counted for one row, which of a
convolution is one output position.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import lokr_core
from benchmarks.factors import Form, Sizes, adapter_of
from benchmarks.figures import Claim, Figure, at_most
from benchmarks.harness import interleave, timed
from benchmarks.scope import Scope
from lokr_core import Adapter, AdapterMix

NUM_ADAPTERS = 4
MAX_DIFFERENCE = 1e-4  # of the largest output, between the dense delta's rows and ours
FACTORED = (Form.FULL, Form.LOW_RANK, Form.LORA, Form.LOHA, Form.LARGE_LOHA)

Dense = Callable[[Tensor, Tensor], Tensor]  # of an input and a delta in the layer's own shape


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """A layer, its input, and what it computes with a delta for its weight."""

    name: str
    layer: nn.Module
    x: Tensor  # a batch in which every adapter has equally many samples
    dense: Dense
    forms: Sequence[Form]
    dense_macs: int  # of one row through a dense delta


class Host(nn.Module):
    """A model of one layer, beside a linear layer that nobody calls."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.side = nn.Linear(1, 1)


def run(scope: Scope) -> list[Figure]:
    """Count and measure every kind and form."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return [
            figure
            for kind in _kinds(scope)
            for form in kind.forms
            for figure in _figures(kind, form, scope)
        ]


def _kinds(scope: Scope) -> Iterator[Kind]:
    """Yield the layers, of sizes that real models have."""
    width, tokens = scope.count(1024, 16), scope.count(16, 2)
    yield Kind(
        name="linear",
        layer=nn.Linear(width, width),
        x=torch.randn(NUM_ADAPTERS, tokens, width),
        dense=functional.linear,
        forms=FACTORED,
        dense_macs=width * width,
    )
    channels, side = scope.count(128, 16), scope.count(32, 4)
    yield Kind(
        name="conv2d",
        layer=nn.Conv2d(channels, channels, 3, padding=1),
        x=torch.randn(NUM_ADAPTERS, channels, side, side),
        dense=lambda x, delta: functional.conv2d(x, delta, padding=1),
        forms=(*FACTORED, Form.TUCKER),
        dense_macs=channels * channels * 9,
    )
    yield Kind(
        name="conv1d",
        layer=nn.Conv1d(channels, channels, 5, padding=2),
        x=torch.randn(NUM_ADAPTERS, channels, side * side),
        dense=lambda x, delta: functional.conv1d(x, delta, padding=2),
        forms=(*FACTORED, Form.TUCKER),
        dense_macs=channels * channels * 5,
    )
    vocab = scope.count(8192, 64)
    yield Kind(
        name="embedding",
        layer=nn.Embedding(vocab, width),
        x=torch.randint(0, vocab, (NUM_ADAPTERS, tokens)),
        dense=functional.embedding,
        forms=FACTORED,
        dense_macs=vocab * width,  # all of it is formed for the rows of one
    )
    yield Kind(
        name="layer norm",
        layer=nn.LayerNorm(width),
        x=torch.randn(NUM_ADAPTERS, tokens, width),
        dense=lambda x, delta: functional.layer_norm(x, delta.shape, delta),
        forms=(Form.VECTOR,),
        dense_macs=width,
    )


def _figures(kind: Kind, form: Form, scope: Scope) -> Iterator[Figure]:
    host = nn.Module.eval(Host(kind.layer)).requires_grad_(False)
    adapted = lokr_core.attach(host)
    sizes = Sizes.of(adapted.spec.modules["layer"])
    adapters = [adapter_of(adapted.spec, form, sizes, seed) for seed in range(NUM_ADAPTERS)]
    for adapter in adapters:
        adapted.add(adapter)
    mixes = [AdapterMix.of({adapter: 1.0}) for adapter in adapters]
    name = f"{kind.name}, {form.value}"
    counted = Claim(name=name, against="a dense delta, formed already", unit="operations")
    yield counted.of_counts(kind.dense_macs, adapted.cost(mixes[0]).unmerged_macs)

    def ours() -> Tensor:
        out: Tensor = host.layer(kind.x)
        return out

    baseline = _dense(kind, adapters)
    measured = Claim(
        name=name, against="base, and the delta formed for each adapter", target=at_most(1.0)
    )
    with adapted.using(mixes, apply="unmerged"):
        _require_equal(name, ours(), baseline())
        pairs = interleave(timed(baseline), timed(ours), scope.num_pairs)
    adapted.detach()
    yield measured.of_pairs(pairs, f"{NUM_ADAPTERS} adapters in one batch")


def _dense(kind: Kind, adapters: Sequence[Adapter]) -> Callable[[], Tensor]:
    """Return the layer with each adapter's dense delta, as PEFT applies it."""
    base = type(kind.layer).forward

    def dense() -> Tensor:
        out: Tensor = base(kind.layer, kind.x)
        for index, adapter in enumerate(adapters):
            (delta,) = adapter.delta_weights().values()
            out[index : index + 1] += kind.dense(kind.x[index : index + 1], delta)
        return out

    return dense


def _require_equal(name: str, ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if difference > MAX_DIFFERENCE:
        raise ValueError(f"{name}: ours differs by {difference:.1e} of the largest output")

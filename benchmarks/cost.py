"""cost: a decode step of 16 rows, against the same step of the base model.

Baseline and candidate read the same base weights: the candidate runs in an attached model, the
baseline in an unattached one over the same parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import lokr_core
from benchmarks.figures import Claim, Figure, at_least, at_most
from benchmarks.harness import interleave, timed
from benchmarks.models import MODEL_100M, Decoder, build_model, twin_of, vocab_of
from benchmarks.peers import PeftPeer
from benchmarks.scope import Scope
from lokr_core import Adapted, Adapter, AdapterMix, Apply, RowSpan

NUM_ROWS = 16
RANK = 8
NUM_CONTEXT_TOKENS = 63
MAX_DIFFERENCE = 1e-3  # of the largest logit, between PEFT's rows and ours
BASE_STEP = "step of the unattached base"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bench:
    """One base in three forms: unattached, attached, and PEFT's."""

    base: Decoder
    ours: Decoder
    adapted: Adapted
    adapters: Sequence[Adapter]  # one for each row, all of one rank
    unequal: Sequence[Adapter]  # one for each row, each of another rank
    num_pairs: int

    def against_base(self, claim: Claim, spans: Sequence[RowSpan]) -> Figure:
        """Measure a step with these mixes against a step of the base."""
        pairs = interleave(timed(self.base.step), timed(self.step(spans)), self.num_pairs)
        extra = float(np.median(pairs.candidate - pairs.baseline)) * 1e6
        num_modules = len(self.adapters[0].layout.modules)
        return claim.of_pairs(
            pairs, f"{extra:+,.0f} µs a step, {extra / num_modules:+.1f} for each adapted module"
        )

    def step(self, spans: Sequence[RowSpan]) -> Callable[[], Tensor]:
        """Return a step in which rows carry mixes as ``spans`` say."""

        def step() -> Tensor:
            with self.adapted.route(spans):
                return self.ours.step()

        return step


def run(scope: Scope) -> list[Figure]:
    """Measure every way of applying adapters, and PEFT's."""
    model = build_model(scope.size(MODEL_100M))
    ranks = [RANK] * NUM_ROWS + list(range(2, 2 + NUM_ROWS))
    peer = PeftPeer(model, ranks)
    prompts = _prompts(model)
    bench = _build(model, peer, prompts, scope)
    figures = [bench.against_base(claim, spans) for claim, spans in _unmerged(bench)]
    with _merged(bench, bench.adapters[0]) as spans:
        claim = Claim(name="one shared adapter, merged", against=BASE_STEP, target=at_most(1.02))
        figures.insert(2, bench.against_base(claim, spans))
    return [*figures, _against_peer(bench, peer, prompts)]


def _prompts(model: LlamaForCausalLM) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = NUM_ROWS, NUM_CONTEXT_TOKENS
    return torch.randint(0, vocab_of(model), shape, generator=generator)


def _build(model: LlamaForCausalLM, peer: PeftPeer, prompts: Tensor, scope: Scope) -> _Bench:
    attached = twin_of(model)
    adapted = lokr_core.attach(attached)
    adapters = [lokr_core.read_adapter(path, adapted.spec) for path in peer.save(scope.folder)]
    for adapter in adapters:
        adapted.add(adapter)
    rows = [
        RowSpan(mix=AdapterMix.of({adapter: 1.0}), apply=Apply.UNMERGED, num_rows=prompts.shape[1])
        for adapter in adapters[:NUM_ROWS]
    ]
    with adapted.route(rows):  # so that the caches hold what PEFT's will
        ours = Decoder(attached, prompts)
    return _Bench(
        base=Decoder(model, prompts),
        ours=ours,
        adapted=adapted,
        adapters=adapters[:NUM_ROWS],
        unequal=adapters[NUM_ROWS:],
        num_pairs=scope.num_pairs,
    )


def _unmerged(bench: _Bench) -> Iterator[tuple[Claim, Sequence[RowSpan]]]:
    """Yield what is applied beside the base, and how rows carry it."""
    none = Claim(name="attached, no adapter", against=BASE_STEP, target=at_most(1.01))
    yield none, _spans([AdapterMix()])
    many = Claim(name="16 adapters", against=BASE_STEP, target=at_most(1.15))
    yield many, _each(bench.adapters)
    pairs = zip(bench.adapters[0:8:2], bench.adapters[1:8:2], strict=True)
    mixes = [AdapterMix.of({first: 0.7, second: 0.5}) for first, second in pairs]
    yield Claim(name="4 mixes of 2 adapters", against=BASE_STEP), _spans(mixes)
    shared = [AdapterMix.of({bench.adapters[0]: 1.0})]
    yield Claim(name="one shared adapter, unmerged", against=BASE_STEP), _spans(shared)
    half = [*(AdapterMix.of({a: 1.0}) for a in bench.adapters[:8]), *[AdapterMix()] * 8]
    yield Claim(name="8 adapters, 8 rows of the base", against=BASE_STEP), _spans(half)
    yield Claim(name="16 adapters of 16 ranks", against=BASE_STEP), _each(bench.unequal)


def _each(adapters: Sequence[Adapter]) -> list[RowSpan]:
    return _spans([AdapterMix.of({adapter: 1.0}) for adapter in adapters])


def _spans(mixes: Sequence[AdapterMix], apply: Apply = Apply.UNMERGED) -> list[RowSpan]:
    """Return spans that share the rows evenly among mixes."""
    num_rows = NUM_ROWS // len(mixes)
    return [RowSpan(mix=mix, apply=apply, num_rows=num_rows) for mix in mixes]


@contextmanager
def _merged(bench: _Bench, adapter: Adapter) -> Iterator[Sequence[RowSpan]]:
    """Merge an adapter for as long as the block runs."""
    mix, merges = AdapterMix.of({adapter: 1.0}), bench.adapted.merges
    merges.put(mix, bench.adapted.merge(mix))
    try:
        yield _spans([mix], Apply.MERGED)
    finally:
        merges.release(mix)


def _against_peer(bench: _Bench, peer: PeftPeer, prompts: Tensor) -> Figure:
    """Measure PEFT, which switches to each row's adapter, against our step of all rows."""
    ours, decoders = bench.step(_each(bench.adapters)), list(peer.decoders(prompts))
    _require_equal(ours(), peer.step(decoders))
    claim = Claim(
        name="PEFT's LoKr, switching for each row",
        against="our step with 16 adapters",
        target=at_least(20),
    )
    pairs = interleave(timed(ours), timed(lambda: peer.step(decoders)), bench.num_pairs)
    return claim.of_pairs(pairs, "both give the same logits")


def _require_equal(ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if difference > MAX_DIFFERENCE:
        raise ValueError(f"PEFT's logits differ from ours by {difference:.1e} of the largest")

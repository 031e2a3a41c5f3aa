"""images: a denoiser's step of four images, against the same step of the base model.

The denoisers have the widths that people train for, so that what a module costs is what it costs
them, in float32 on latents of 32 by 32. Adapters are written by PEFT.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

import lokr_core
from benchmarks.denoisers import NUM_IMAGES, Denoiser, ImagePeer, Recipe, denoisers
from benchmarks.figures import Claim, Figure, at_least, at_most
from benchmarks.harness import interleave, timed
from benchmarks.models import twin_over
from benchmarks.scope import Scope
from benchmarks.store import FULL_RANK
from lokr_core import Adapted, Adapter, AdapterMix, Apply

MERGE_CACHE_BYTES = 2**33
MAX_DIFFERENCE = 1e-3  # of the largest prediction, between PEFT's images and ours
BASE_STEP = "step of the unattached base"

Samples = Sequence[tuple[AdapterMix, Apply]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bench:
    """One denoiser, unattached and attached."""

    denoiser: Denoiser
    ours: nn.Module
    adapted: Adapted
    scope: Scope

    def base_step(self) -> Tensor:
        """Run a step of the unattached base."""
        return self.denoiser.step(self.denoiser.model)

    def step(self, samples: Samples) -> Callable[[], Tensor]:
        """Return a step in which each image carries a mix."""

        def step() -> Tensor:
            with self.adapted.route_samples(samples):
                return self.denoiser.step(self.ours)

        return step

    def against_base(self, name: str, samples: Samples, limit: float | None = None) -> Figure:
        """Measure a step with these mixes against a step of the base."""
        target = None if limit is None else at_most(limit)
        claim = Claim(name=self._named(name), against=BASE_STEP, target=target)
        pairs = interleave(timed(self.base_step), timed(self.step(samples)), self.scope.num_pairs)
        extra = float(np.median(pairs.candidate - pairs.baseline)) * 1e3
        return claim.of_pairs(pairs, f"{extra:+,.0f} ms a step{self._counted(samples)}")

    def against_peer(self, recipe: Recipe, peer: ImagePeer, samples: Samples) -> Figure:
        """Measure PEFT, which switches to each image's adapter, against our step of all."""
        ours = self.step(samples)
        _require_equal(ours(), peer.step())
        claim = Claim(
            name=self._named(f"PEFT's LoKr on {recipe.name}, switching for each image"),
            against="our step with the same adapters",
            target=at_least(3),
        )
        pairs = interleave(timed(ours), timed(peer.step), self.scope.num_pairs)
        return claim.of_pairs(pairs, "both predict the same")

    def adapters(self, recipe: Recipe) -> tuple[ImagePeer, list[Adapter]]:
        """Return PEFT's model of a recipe, and its adapters, which ours has been given."""
        peer = ImagePeer(self.denoiser, recipe)
        folders = peer.save(self.scope.folder / self.denoiser.name)
        adapters = [lokr_core.read_adapter(path, self.adapted.spec) for path in folders]
        for adapter in adapters:
            self.adapted.add(adapter)
        return peer, adapters

    @contextmanager
    def merged(self, mixes: Sequence[AdapterMix]) -> Iterator[Samples]:
        """Merge a mix for each image, or one for all, for as long as the block runs."""
        merges = self.adapted.merges
        for mix in mixes:
            merges.put(mix, self.adapted.merge(mix))
        try:
            yield [(mix, Apply.MERGED) for mix in mixes] * (NUM_IMAGES // len(mixes))
        finally:
            for mix in mixes:
                merges.release(mix)

    def _named(self, name: str) -> str:
        return f"{self.denoiser.name}: {name}"

    def _counted(self, samples: Samples) -> str:
        """Return what the deltas of unmerged mixes cost by count."""
        costs = [self.adapted.cost(mix) for mix, apply in samples if apply is Apply.UNMERGED]
        share = sum(cost.unmerged_macs / cost.base_macs for cost in costs) / NUM_IMAGES
        return f", {share:.1%} more operations" if share else ""


def run(scope: Scope) -> list[Figure]:
    """Measure every way of applying adapters to images, and PEFT's."""
    return [figure for denoiser in denoisers(scope) for figure in _figures(denoiser, scope)]


def _figures(denoiser: Denoiser, scope: Scope) -> Iterator[Figure]:
    ours = twin_over(denoiser.model)
    adapted = lokr_core.attach(ours, merge_cache_bytes=MERGE_CACHE_BYTES)
    bench = _Bench(denoiser=denoiser, ours=ours, adapted=adapted, scope=scope)
    unmerged = Apply.UNMERGED
    yield bench.against_base("no adapter", [(AdapterMix(), unmerged)] * NUM_IMAGES, 1.01)
    low = Recipe(name="attention and feed-forward", targets=denoiser.linears, rank=8, factor=8)
    peer, adapters = bench.adapters(low)
    mixes = [AdapterMix.of({adapter: 1.0}) for adapter in adapters]
    samples = [(mix, unmerged) for mix in mixes]
    yield bench.against_base(f"4 low-rank adapters on {low.name}", samples, 1.15)
    yield bench.against_base("one low-rank adapter, unmerged", samples[:1] * NUM_IMAGES)
    with bench.merged(mixes[:1]) as shared:
        yield bench.against_base("one mix, merged", shared, 1.02)
    with bench.merged(mixes) as each:
        yield bench.against_base("4 mixes, merged", each)
    yield bench.against_peer(low, peer, samples)
    yield from _of_whole_blocks(bench)
    yield from _of_full_factors(bench)


def _of_whole_blocks(bench: _Bench) -> Iterator[Figure]:
    """Measure adapters of every linear module and convolution of the blocks."""
    recipe = Recipe(name="whole blocks", targets=bench.denoiser.blocks, rank=8, factor=8)
    peer, adapters = bench.adapters(recipe)
    samples = [(AdapterMix.of({adapter: 1.0}), Apply.UNMERGED) for adapter in adapters]
    yield bench.against_base(f"4 low-rank adapters on {recipe.name}", samples, 1.15)
    yield bench.against_peer(recipe, peer, samples)


def _of_full_factors(bench: _Bench) -> Iterator[Figure]:
    """Measure what auto merges: factors that are not of low rank."""
    linears = bench.denoiser.linears
    recipe = Recipe(name="full factors", targets=linears, rank=FULL_RANK, factor=4)
    _, adapters = bench.adapters(recipe)
    mixes = [AdapterMix.of({adapter: 1.0}) for adapter in adapters]
    samples = [(mix, Apply.UNMERGED) for mix in mixes]
    yield bench.against_base("4 adapters of full factors at factor 4", samples)
    with bench.merged(mixes) as each:
        yield bench.against_base("the same 4, merged", each)


def _require_equal(ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if difference > MAX_DIFFERENCE:
        raise ValueError(f"PEFT's predictions differ from ours by {difference:.1e} of the largest")

"""Interleaved pairs: two ways of doing a thing, measured in turns, compared by their ratio."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_PAIRS = 50  # fewer than this are for trying out
_NUM_RESAMPLES = 2000
_CONFIDENCE = (2.5, 97.5)  # percentiles that hold 95 % of the resamples

Measure = Callable[[], float]  # does the thing once and returns seconds, or tokens per second
Samples = NDArray[np.float64]
Blocks = Sequence[Samples]  # for each pair, all that was measured in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A statistic with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Interval":
        """Return what was counted, not sampled."""
        return cls(value=value, low=value, high=value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """What was measured, pair by pair."""

    baseline: Samples  # [pairs]
    candidate: Samples  # [pairs]

    @property
    def ratio(self) -> Interval:
        """The median of candidate over baseline."""
        ratios = self.candidate / self.baseline
        resampled = np.median(ratios[_resamples(len(ratios))], axis=1)
        return _interval(float(np.median(ratios)), resampled)


def timed(call: Callable[[], object]) -> Measure:
    """Return a measure of the seconds that a call takes."""

    def measure() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return measure


def interleave(baseline: Measure, candidate: Measure, num_pairs: int) -> Pairs:
    """Measure both in turns; which comes first alternates. Both are run once before."""
    baseline()
    candidate()
    measured = np.empty((num_pairs, 2))
    for pair in measured:
        pair[0] = baseline()
        pair[1] = candidate()
        baseline, candidate = candidate, baseline
    measured[1::2] = measured[1::2, ::-1].copy()  # every second pair was taken in reverse
    return Pairs(baseline=measured[:, 0], candidate=measured[:, 1])


def quantile_ratio(baseline: Blocks, candidate: Blocks, quantile: float) -> Interval:
    """Return the ratio of a quantile over all blocks; whole pairs are resampled."""

    def ratio(pairs: Sequence[int]) -> float:
        ends = (
            np.quantile(np.concatenate([blocks[i] for i in pairs]), quantile)
            for blocks in (candidate, baseline)
        )
        return float(next(ends) / next(ends))

    every = range(len(baseline))
    resampled = [ratio(pairs) for pairs in _resamples(len(baseline)).tolist()]
    return _interval(ratio(every), np.array(resampled))


def _resamples(count: int) -> NDArray[np.int64]:
    """Return the indices of resamples, [resamples, count]; the same for every run."""
    return np.random.default_rng(0).integers(0, count, (_NUM_RESAMPLES, count))


def _interval(value: float, resampled: Samples) -> Interval:
    low, high = np.percentile(resampled, _CONFIDENCE)
    return Interval(value=value, low=float(low), high=float(high))

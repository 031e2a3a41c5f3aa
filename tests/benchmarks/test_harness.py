"""Interleaved pairs, their intervals, and the figures made of them."""

import json
from pathlib import Path

import numpy as np

from benchmarks.figures import Bound, Claim, Target, at_least, at_most, write_figures
from benchmarks.harness import Interval, Pairs, interleave, quantile_ratio


def test_pairs_alternate_and_keep_their_sides() -> None:
    """A machine that slows down must not favour one side, nor may sides be mixed up."""
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    pairs = interleave(lambda: measure("a", 1.0), lambda: measure("b", 2.0), num_pairs=4)

    assert order == [*"ab", *"ab", *"ba", *"ab", *"ba"]  # the first two are a warm-up
    assert pairs.baseline.tolist() == [1.0] * 4
    assert pairs.candidate.tolist() == [2.0] * 4


def test_the_interval_holds_the_true_ratio_of_noisy_pairs() -> None:
    """A verdict rests on the interval, which must be about the pairs' noise wide."""
    draw = np.random.default_rng(0)
    noise = draw.lognormal(sigma=0.1, size=(2, 200))

    ratio = Pairs(baseline=noise[0], candidate=1.2 * noise[1]).ratio

    assert ratio.low < 1.2 < ratio.high
    assert ratio.low < ratio.value < ratio.high
    assert ratio.high - ratio.low < 0.1


def test_a_quantile_is_taken_over_all_blocks() -> None:
    """Windows differ in length; each step counts the same."""
    baseline = [np.ones(3), np.ones(40)]
    candidate = [np.ones(40), np.full(3, 2.0)]

    ratio = quantile_ratio(baseline, candidate, 0.99)

    assert ratio.value == 2.0
    assert ratio.low == 1.0  # some resamples hold the first window alone


def test_a_target_inside_the_interval_is_met() -> None:
    """Noise alone must not turn a kept promise into a broken one, nor the other way round."""
    ratio = Interval(value=1.03, low=1.01, high=1.05)

    assert at_most(1.02).is_met(ratio)
    assert not at_most(1.0).is_met(ratio)
    assert at_least(1.04).is_met(ratio)
    assert not at_least(1.06).is_met(ratio)


def test_written_figures_name_command_target_and_verdict(tmp_path: Path) -> None:
    """A reader of the file needs no other source to repeat and to judge the run."""
    claim = Claim(name="bytes", against="count", unit="bytes", target=at_most(1.02))
    path = tmp_path / "new" / "figures.json"

    write_figures(path, "python -m benchmarks scale", {"scale": [claim.of_counts(100, 103)]})

    written = json.loads(path.read_text(encoding="utf-8"))
    figure = written["results"]["scale"][0]
    assert written["command"] == "python -m benchmarks scale"
    assert figure["ratio"] == {"value": 1.03, "low": 1.03, "high": 1.03}
    assert (figure["target"], figure["verdict"]) == ("≤ 1.02", "missed")


def test_a_claim_shows_seconds_as_milliseconds() -> None:
    """Steps last milliseconds, and a table of small fractions is hard to read."""
    pairs = Pairs(baseline=np.full(3, 0.002), candidate=np.full(3, 0.004))

    figure = Claim(name="step", against="base").of_pairs(pairs)

    assert figure.medians == (2.0, 4.0)
    assert figure.verdict == ""
    assert Target(bound=Bound.AT_MOST, limit=2.0).is_met(figure.ratio)

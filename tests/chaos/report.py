"""Report: what a run did, and what it found."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.probe import Samples

_COUNTED = (
    "lokr_serve_generated_tokens_total",
    "lokr_serve_cached_prompt_tokens_total",
    "lokr_serve_merges_total",
    "lokr_serve_adapter_evictions_total",
    "lokr_serve_adapter_load_failures_total",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeReport:
    """One process of the server."""

    start_seconds: float
    num_rounds: int
    end: str
    num_files: Sequence[int]  # at each quiet moment
    num_threads: Sequence[int]
    resident_mib: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run."""

    seed: int
    seconds: float
    num_tokens_compared: int
    ends: Mapping[str, Mapping[str, int]]  # of calls, by operation and status
    totals: Mapping[str, int]  # of the server's counters, over lives, at their last quiet moment
    lives: Sequence[LifeReport]
    num_violations: int
    violations: Sequence[str]
    skipped: Sequence[str]

    @property
    def has_passed(self) -> bool:
        """Whether all that must hold did."""
        return not self.num_violations


@dataclass(slots=True)
class Totals:
    """The server's own counters, over all lives."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, samples: Samples) -> None:
        """Add what a life had counted when it was last seen."""
        for name in _COUNTED:
            short = name.removeprefix("lokr_serve_").removesuffix("_total")
            self.counts[short] += round(samples.total(name))

"""Plans: the row plans of one thread, and the banks that they look into."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lokr_core.cache import MergeCache
from lokr_core.layers.bank import Banks
from lokr_core.layers.plan import RowPlan
from lokr_core.layers.planner import Planner
from lokr_core.layers.spans import RowSpan
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, Apply
from lokr_core.pool import AdapterPool

_KEPT_PLANS = 64  # one forward of a UNet takes one for each number of rows that its modules see

Spans = tuple[RowSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenPlans:
    """The plan of packed tokens, and that of the rows that the head sees."""

    tokens: RowPlan | None
    head: RowPlan | None

    @property
    def is_current(self) -> bool:
        """Whether the banks still hold what the plans look at; both look at the same rows."""
        return self.tokens is None or self.tokens.is_current


class Plans(threading.local):
    """Builds row plans; each thread that uses it has its own banks, bounded by ``max_bytes``.

    A plan looks into banks whose rows move when the next plan is made, so threads that run the
    model at the same time must not share them.
    """

    def __init__(
        self, *, pool: AdapterPool, merges: MergeCache, max_bytes: int, dtype: torch.dtype
    ) -> None:
        self._pool = pool
        self._merges = merges
        self._banks = Banks(pool=pool, max_bytes=max_bytes, dtype=dtype)
        self._planner = Planner(pool, self._banks)
        self._kept: dict[tuple[Spans, Spans], TokenPlans] = {}
        self._seen = (0, 0)  # removals from the pool, drops from the merge cache

    def plan(self, spans: Sequence[RowSpan]) -> RowPlan | None:
        """Return the plan for rows that lie as ``spans`` say, or None if all are the base's."""
        return self.token_plans(tuple(spans), ()).tokens

    def token_plans(self, spans: Spans, head_spans: Spans) -> TokenPlans:
        """Return the plans of a forward, the same again while rows and banks stay."""
        self._forget_dropped()
        key = spans, head_spans
        plans = self._kept.pop(key, None)
        if plans is None or not plans.is_current:
            with torch.inference_mode(False):  # banks outlive the forward, and others need grads
                plans = self._token_plans(spans, head_spans)
            self._kept = {key: kept for key, kept in self._kept.items() if kept.is_current}
        self._kept[key] = plans
        while len(self._kept) > _KEPT_PLANS:
            del self._kept[next(iter(self._kept))]
        return plans

    def _token_plans(self, spans: Spans, head_spans: Spans) -> TokenPlans:
        merged = self._merged(spans)
        tokens = self._planner.plan(spans, merged)
        head = tokens and self._planner.head_plan(head_spans, merged, tokens)
        return TokenPlans(tokens=tokens, head=head)

    def _forget_dropped(self) -> None:
        """Let go of removed adapters and of merged weights that were dropped from the cache."""
        seen = self._pool.num_removals, self._merges.num_drops
        if seen == self._seen:
            return
        self._kept.clear()
        if seen[0] != self._seen[0]:
            self._banks.forget_removed()
        self._seen = seen

    def _merged(self, spans: Sequence[RowSpan]) -> dict[AdapterMix, MergedMix]:
        return {
            span.mix: self._merges.get(span.mix)
            for span in spans
            if span.apply is Apply.MERGED and not span.mix.is_base
        }

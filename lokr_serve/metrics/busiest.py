"""A counter per adapter whose number of series is bounded."""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

OTHER = "other"
# Adapters whose requests are remembered although they have no series; one that comes back after
# that begins anew, as after a restart.
MAX_UNNAMED = 10_000


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What was counted for one adapter; ``named`` while it had a series of its own."""

    total: float = 0.0
    named: float = 0.0


class BusiestCounter(Collector):
    """A counter per adapter in a bounded number of series: the busiest N, the rest as ``other``.

    Each event counts in exactly one series, that of its adapter if it has one at the time, else
    ``other``, so that none ever decreases and their sum is exact, whoever changes places. Places
    change after a scrape alone, so that what a series has counted is always told. An adapter
    takes the place of another only if it has been at least twice as busy since the start: series
    do not flicker, and N places see at most ``N log2(events)`` changes.
    """

    def __init__(self, name: str, text: str, max_series: int) -> None:
        self._name = name
        self._text = text
        self._max_series = max_series
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()  # counted last, last
        self._named: set[str] = set()
        self._comers: set[str] = set()  # may be busy enough for a place at the next scrape
        self._enough = 0.0  # requests for that; at most what it takes, as places only get dearer
        self._other = 0.0
        self._lock = threading.Lock()

    def add(self, adapter_id: str) -> None:
        """Count one event of an adapter."""
        with self._lock:
            tally = self._tallies.setdefault(adapter_id, _Tally())
            self._tallies.move_to_end(adapter_id)
            tally.total += 1
            if len(self._named) < self._max_series and adapter_id != OTHER:
                self._named.add(adapter_id)
                self._price_places()
            if adapter_id in self._named:
                tally.named += 1
            else:
                self._other += 1
                if tally.total >= self._enough and adapter_id != OTHER:
                    self._comers.add(adapter_id)
            self._forget()

    def collect(self) -> Iterator[Metric]:
        """Yield the family, then see who are the busiest."""
        family = CounterMetricFamily(self._name, self._text, labels=("adapter_id",))
        with self._lock:
            for adapter_id in sorted(self._named):
                family.add_metric((adapter_id,), self._tallies[adapter_id].named)
            family.add_metric((OTHER,), self._other)
            self._change_places()
        yield family

    def _change_places(self) -> None:
        """Let the busiest of the others take the places of those half as busy."""
        busiest = heapq.nlargest(self._max_series, self._comers, key=self._total)
        for comer, leaver in zip(busiest, sorted(self._named, key=self._total), strict=False):
            if self._total(comer) < 2 * self._total(leaver):
                break
            self._named.remove(leaver)
            self._named.add(comer)
        self._comers.clear()
        self._price_places()

    def _price_places(self) -> None:
        """Note what it takes to have a place: a scrape then looks at few of many adapters."""
        if len(self._named) == self._max_series:
            self._enough = 2 * min(map(self._total, self._named))

    def _total(self, adapter_id: str) -> float:
        return self._tallies[adapter_id].total

    def _forget(self) -> None:
        """Forget the adapter without a series that was counted longest ago, beyond a limit."""
        if len(self._tallies) > self._max_series + MAX_UNNAMED:
            oldest = next(name for name in self._tallies if name not in self._named)
            del self._tallies[oldest]
            self._comers.discard(oldest)

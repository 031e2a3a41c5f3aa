"""scale: thousands of adapters registered and resident."""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines import Serving, entered, serving
from benchmarks.figures import Claim, Figure, at_most
from benchmarks.harness import Measure, interleave
from benchmarks.models import MODEL_4M, build_model
from benchmarks.scope import Scope
from benchmarks.store import Store, write_store

NUM_FEW = 5
NUM_REQUESTS = 4  # one after the other, for each side of a pair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """A server's inside, and the adapters that it has in memory."""

    runner: asyncio.Runner
    serving: Serving
    ids: Sequence[str]

    def load(self) -> float:
        """Bring the adapters into memory and return the seconds that it takes."""
        began = time.monotonic()
        self.runner.run(self.serving.load(self.ids))
        return time.monotonic() - began

    def warm_up(self, spare_id: str) -> None:
        """Run one request, after which the engine has all the memory that it will take."""
        self.runner.run(self.serving.first_token(spare_id))

    def first_tokens(self, asked: Sequence[str]) -> Measure:
        """Return a measure of the time to the first token, of these adapters in turn."""
        turns = itertools.cycle(asked)

        async def run() -> float:
            times = [await self.serving.first_token(next(turns)) for _ in range(NUM_REQUESTS)]
            return sum(times) / NUM_REQUESTS

        return lambda: self.runner.run(run())


def run(scope: Scope) -> list[Figure]:
    """Measure memory, and the time to the first token with few and with many adapters."""
    model = build_model(scope.size(MODEL_4M))
    store = write_store(scope.folder, model, scope.count(10_000, 40))
    resident = store.ids[: scope.count(2_000, 20)]
    with asyncio.Runner() as runner, entered(runner, serving(model, store.root)) as first:
        many = _Side(runner=runner, serving=first, ids=resident)
        figures = list(_memory(many, store))
        with entered(runner, serving(model, store.root)) as second:
            few = _Side(runner=runner, serving=second, ids=resident[:NUM_FEW])
            few.load()
            figures += _first_tokens(few, many, scope.num_pairs)
    return figures


def _memory(many: _Side, store: Store) -> Iterator[Figure]:
    """Load the adapters, and compare what they take with the bytes of their factors."""
    many.warm_up(store.ids[-1])
    before = _resident_bytes()
    seconds = many.load()
    growth = _resident_bytes() - before
    factors = store.factor_bytes * len(many.ids)
    statuses = many.serving.registry.list()
    ids = set(many.ids)
    loaded = [status for status in statuses if status.adapter_id in ids]
    held = sum(status.device_bytes + status.host_bytes for status in loaded)
    against = f"the factors of {len(many.ids):,} adapters by count"
    counted = Claim(
        name="device and host bytes", against=against, unit="bytes", target=at_most(1.02)
    )
    note = f"{len(statuses):,} registered, {store.factor_bytes:,} bytes of factors each"
    yield counted.of_counts(factors, held, note)
    grown = Claim(
        name="growth of resident memory", against=against, unit="bytes", target=at_most(1.3)
    )
    rate = len(many.ids) / seconds
    yield grown.of_counts(factors, growth, f"{rate:,.0f} adapters loaded in a second")


def _resident_bytes() -> int:
    """Return the memory of this process that is not swapped out or only reserved."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _first_tokens(few: _Side, many: _Side, num_pairs: int) -> Iterator[Figure]:
    """Measure requests for adapters that are in memory: always the same few, and all in turn."""
    baseline = few.first_tokens(few.ids)
    for name, asked in (
        (f"the same {len(few.ids)} asked", few.ids),
        ("all asked in turn", many.ids),
    ):
        claim = Claim(
            name=f"time to first token, {len(many.ids):,} resident, {name}",
            against=f"{len(few.ids)} resident",
            target=at_most(1.1),
        )
        yield claim.of_pairs(interleave(baseline, many.first_tokens(asked), num_pairs))

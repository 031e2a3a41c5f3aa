"""Watch: what must hold at a quiet moment, when every call has ended."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lokr_serve.types import AdapterState, AdapterStatus
from tests.chaos.actors.recovering import recover
from tests.chaos.place import Budgets, Place
from tests.chaos.probe import Holdings, Samples, holdings, open_files, scrape
from tests.chaos.round import Round, Scene
from tests.chaos.server import Life
from tests.chaos.storage import half_files, leftovers

SETTLE_SECONDS = 20.0  # for a server that has nothing to do any more to notice
LOOK_SECONDS = 0.1
EXTRA_FILES = 20  # connections to the store that are kept for the next fetch
EXTRA_THREADS = 16  # of pools that were not needed as a whole until then
MAX_GROWTH_BYTES = 96 * 2**20  # of a life, from its second quiet moment on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """All that can be seen of a server at one time."""

    samples: Samples
    adapters: Sequence[AdapterStatus]
    held: Holdings

    def unrest(self) -> Iterator[str]:
        """Say what still goes on, or is kept for somebody who is gone."""
        for gauge in ("requests_running", "requests_waiting"):
            if value := self.samples.value(f"lokr_serve_{gauge}"):
                yield f"{gauge} is {value:.0f}"
        num_calls = self.samples.total("grpc_server_started_total") - self.samples.total(
            "grpc_server_handled_total"
        )
        if num_calls:
            yield f"{num_calls:.0f} calls have not ended"
        for adapter in self.adapters:
            if adapter.in_flight:
                yield f"{adapter.adapter_id} has {adapter.in_flight} requests in flight"
            if adapter.state in (AdapterState.LOADING, AdapterState.DRAINING):
                yield f"{adapter.adapter_id} is {adapter.state.value}"
        resident_bytes = sum(adapter.device_bytes for adapter in self.adapters)
        told_bytes = self.samples.value("lokr_serve_adapter_bytes", {"tier": "device"})
        if told_bytes != resident_bytes:
            yield f"{told_bytes:.0f} bytes of adapters are told of, {resident_bytes} are there"

    def excess(self, budgets: Budgets) -> Iterator[str]:
        """Say which budget is exceeded, and what failed inside."""
        if (found := sum(a.device_bytes for a in self.adapters)) > budgets.adapter_bytes:
            yield f"adapters take {found} bytes of {budgets.adapter_bytes}"
        merged_bytes = self.samples.value("lokr_serve_merge_cache_bytes")
        if merged_bytes > budgets.merged_bytes:
            yield f"merged weights take {merged_bytes:.0f} bytes of {budgets.merged_bytes}"
        if failures := self.samples.value("lokr_serve_step_failures_total"):
            yield f"{failures:.0f} steps have failed"


class Watch:
    """Looks at one life, and compares it with how it was in its first quiet moments."""

    def __init__(self, life: Life, place: Place) -> None:
        self._life = life
        self._place = place
        self.looks: list[Look] = []  # one for each quiet moment

    async def look_until_quiet(self, round_: Round) -> None:
        """Wait until the server is at rest, and note what is not as it should be."""
        await recover(round_)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            look = await self._look()
            unrest = [*look.unrest(), *self._leaks(look), *self._unlike_files(round_.scene, look)]
            if not unrest or time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_SECONDS)
        self.looks.append(look)
        for adapter_id, version in round_.scene.declarations.versions.items():
            round_.scene.shelf.is_now(adapter_id, version)
        when = f"after round {self._life.num_rounds} of life {self._life.number}"
        faults = (*unrest, *look.excess(self._place.budgets), *self._growth(look))
        for fault in (*faults, *half_files(self._place)):
            round_.scene.ledger.violate("not at rest", f"{when}: {fault}")

    def _unlike_files(self, scene: Scene, look: Look) -> Iterator[str]:
        """Compare with what the manifest declares, and with what may lie on the disk."""
        yield from scene.declarations.faults(look.adapters)
        yield from leftovers(self._place)

    async def _look(self) -> Look:
        adapters = [adapter async for adapter in self._life.admin.list_adapters()]
        return Look(
            samples=await scrape(self._life.addresses.metrics_listen),
            adapters=adapters,
            held=holdings(self._life.pid),
        )

    def _leaks(self, look: Look) -> Iterator[str]:
        """Compare with the first quiet moment, in which every pool has been used."""
        if not self.looks:
            return
        first, now = self.looks[0].held, look.held
        if now.num_files > first.num_files + EXTRA_FILES:
            files = dict(open_files(self._life.pid))
            yield f"{now.num_files} files are open, {first.num_files} were at first: {files}"
        if now.num_threads > first.num_threads + EXTRA_THREADS:
            yield f"{now.num_threads} threads run, {first.num_threads} did at first"

    def _growth(self, look: Look) -> Iterator[str]:
        if len(self.looks) < 3:
            return
        grown = look.held.resident_bytes - self.looks[1].held.resident_bytes
        if grown > MAX_GROWTH_BYTES:
            yield f"memory has grown by {grown >> 20} MiB since the second quiet moment"

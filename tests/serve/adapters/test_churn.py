"""Everything at once: leases, loads, replacements, unloads, cancellations, under a small budget."""

import asyncio
import random

import pytest

from lokr_core import Adapted, LokrError
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterBusyError,
    AdapterDrainingError,
    AdapterExistsError,
    AdapterNotFoundError,
    AdapterUnloadedError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.conftest import MakeRegistry, Store

NAMES = "abcdef"
ALLOWED = (  # what a well-behaved caller may be told while others change things
    AdapterBudgetError,
    AdapterBusyError,
    AdapterDrainingError,
    AdapterExistsError,
    AdapterNotFoundError,
    AdapterUnloadedError,
)


class Churn:
    """Plays random callers against one registry and notes what they may not see."""

    def __init__(self, registry: AdapterRegistry, adapted: Adapted, seed: int) -> None:
        self._registry = registry
        self._adapted = adapted
        self._random = random.Random(seed)
        self.num_served = 0
        self.unexpected: list[LokrError] = []

    async def caller(self) -> None:
        """Do some things, one after the other."""
        actions = [self.request] * 8 + [self.load] * 3 + [self.unload, self.update]
        for _ in range(12):
            action = asyncio.create_task(self._random.choice(actions)())
            if self._random.random() < 0.15:
                await asyncio.sleep(self._random.random() * 0.003)
                action.cancel()
            await asyncio.wait({action})
            error = None if action.cancelled() else action.exception()
            if isinstance(error, LokrError) and not isinstance(error, ALLOWED):
                self.unexpected.append(error)
            elif error is not None and not isinstance(error, LokrError):
                raise error

    async def request(self) -> None:
        """Hold a mix for a while; whatever happens, its adapters must be there."""
        names = self._random.sample(NAMES, self._random.randint(1, 2))
        parts = [AdapterWeight(adapter_id=name) for name in names]
        async with self._registry.lease(parts, self._random.choice(list(ApplyMode))) as lease:
            for _ in range(self._random.randint(0, 3)):
                await asyncio.sleep(0.001)
                self._adapted.check(lease.mix)
                if lease.ended.done():
                    raise AdapterUnloadedError(lease.ended.result())
            self.num_served += 1

    async def load(self) -> None:
        """Load an id from one of two sources."""
        name = self._random.choice(NAMES)
        source = self._random.choice([name, f"{name}-new"])
        replace, pinned = self._random.random() < 0.7, self._random.random() < 0.2
        await self._registry.load(
            LoadSpec(adapter_id=name, source=source, replace=replace, pinned=pinned)
        )

    async def unload(self) -> None:
        """Unload an id, by force or not."""
        seconds, force = self._random.choice([0, 0.003]), self._random.random() < 0.5
        await self._registry.unload(self._random.choice(NAMES), drain_seconds=seconds, force=force)

    async def update(self) -> None:
        """Pin or unpin an id."""
        pinned = self._random.random() < 0.3
        await self._registry.update(self._random.choice(NAMES), pinned=pinned, ttl_seconds=None)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_churn_never_breaks_a_lease_and_leaves_nothing_behind(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics, seed: int
) -> None:
    """What holds for each operation must hold for all of them at once."""
    for index, name in enumerate(NAMES):
        store.write(name, index)
        store.write(f"{name}-new", 100 + index)
    registry = make_registry(device_bytes=4 * store.num_bytes)
    await registry.scan()
    churn = Churn(registry, adapted, seed)

    await asyncio.gather(*(churn.caller() for _ in range(8)))

    assert not churn.unexpected
    assert churn.num_served > 5
    statuses = registry.list()
    assert {status.in_flight for status in statuses} == {0}
    assert {status.state for status in statuses} <= {AdapterState.READY, AdapterState.REGISTERED}
    for status in statuses:
        await registry.unload(status.adapter_id, drain_seconds=0, force=False)
    sample = metrics.registry.get_sample_value
    assert sample("lokr_serve_adapter_bytes", {"tier": "device"}) == 0
    assert sample("lokr_serve_adapters_resident", {"tier": "device"}) == 0

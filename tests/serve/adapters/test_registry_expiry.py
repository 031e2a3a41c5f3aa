"""Times to live: idle adapters clear themselves away."""

import asyncio

from lokr_core import Adapted
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.callers import evictions, is_added, until, use
from tests.serve.adapters.conftest import MakeRegistry, Store

A = [AdapterWeight(adapter_id="a")]
LOAD_A = LoadSpec(adapter_id="a", source="a")


async def test_an_idle_adapter_expires(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """Adapters of short use clear themselves away, as by an unload."""
    store.write("a")
    registry = make_registry()
    await registry.load(LoadSpec(adapter_id="a", source="a", ttl_seconds=0.02))
    mix = await use(registry, "a")

    await until(lambda: registry.list() == [])

    assert not is_added(adapted, mix)
    assert evictions(metrics, "ttl") == 1


async def test_an_adapter_of_the_folder_expires_to_registered(
    make_registry: MakeRegistry, store: Store
) -> None:
    """The folder says that the id exists; the time to live says how long it stays in memory."""
    store.write("a")
    registry = make_registry()
    await registry.scan()
    await registry.update("a", pinned=None, ttl_seconds=0.01)
    await use(registry, "a")

    await until(lambda: registry.get("a").state is AdapterState.REGISTERED)
    await use(registry, "a")

    await until(lambda: registry.get("a").state is AdapterState.REGISTERED)


async def test_an_adapter_in_use_pinned_or_without_limit_does_not_expire(
    make_registry: MakeRegistry, store: Store
) -> None:
    """The time to live counts idleness, and an operator's pin is stronger."""
    for seed, name in enumerate("abc"):
        store.write(name, seed)
    registry = make_registry()
    for name, pinned in (("a", False), ("b", True), ("c", False)):
        await registry.load(LoadSpec(adapter_id=name, source=name, pinned=pinned, ttl_seconds=0.01))
    await registry.update("c", pinned=None, ttl_seconds=0)

    async with registry.lease(A, ApplyMode.UNMERGED):
        await asyncio.sleep(0.05)
        kept = [status.adapter_id for status in registry.list()]
    await registry.update("b", pinned=False, ttl_seconds=None)

    assert kept == ["a", "b", "c"]
    await until(lambda: [status.adapter_id for status in registry.list()] == ["c"])

"""Idle adapters leave memory after a while, and come back when they are asked for."""

import asyncio

from lokr_core import Adapted
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode
from tests.serve.adapters.callers import evictions, is_added, scanned, until, use
from tests.serve.adapters.conftest import MakeRegistry, Store

A = [AdapterWeight(adapter_id="a")]


async def test_an_idle_adapter_leaves_memory_and_stays_registered(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """Memory goes to what is used, and nobody must load the others by hand again."""
    registry = await scanned(make_registry, store, "a", idle_seconds=0.02)
    mix = await use(registry, "a")

    await until(lambda: registry.get("a").state is AdapterState.REGISTERED)

    assert not is_added(adapted, mix)
    assert evictions(metrics, "idle") == 1
    assert await use(registry, "a") == mix


async def test_each_leaves_by_its_own_last_use(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """One that is used again and again never goes."""
    registry = await scanned(make_registry, store, "ab", idle_seconds=0.1)
    await use(registry, "a")
    await use(registry, "b")
    while registry.get("b").state is AdapterState.READY:
        await use(registry, "a")
        await asyncio.sleep(0.001)

    assert registry.get("a").state is AdapterState.READY
    assert evictions(metrics, "idle") == 1


async def test_what_is_leased_or_pinned_stays(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """A request in flight is a use, and an operator's pin is stronger."""
    registry = await scanned(make_registry, store, "abc", idle_seconds=0.02)
    await registry.update("b", pinned=True, ttl_seconds=None)
    async with registry.lease(A, ApplyMode.UNMERGED):
        await use(registry, "c")
        await until(lambda: registry.get("c").state is AdapterState.REGISTERED)
        states = [registry.get(name).state for name in "ab"]
    await registry.update("b", pinned=False, ttl_seconds=None)

    assert states == [AdapterState.READY] * 2
    await until(lambda: evictions(metrics, "idle") == 3)


async def test_nothing_leaves_unless_it_is_set(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """A load costs time; where memory is enough, it is paid once."""
    registry = await scanned(make_registry, store, "a")
    await use(registry, "a")
    await asyncio.sleep(0.05)

    assert registry.get("a").state is AdapterState.READY
    assert evictions(metrics, "idle") == 0

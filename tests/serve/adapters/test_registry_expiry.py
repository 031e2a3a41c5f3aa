"""Times to live: idle adapters clear themselves away."""

import asyncio

import pytest

from lokr_core import Adapted
from lokr_serve.errors import AdapterLoadFailedError
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.callers import evictions, is_added, spec, until, use
from tests.serve.adapters.conftest import Gate, MakeRegistry, Store

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
        await registry.load(LoadSpec(adapter_id=name, source=name, pinned=pinned))

    async with registry.lease(A, ApplyMode.UNMERGED):
        for name, ttl_seconds in (("a", 0.01), ("b", 0.01), ("c", 0.01), ("c", 0)):
            await registry.update(name, pinned=None, ttl_seconds=ttl_seconds)
        await asyncio.sleep(0.05)
        kept = [status.adapter_id for status in registry.list()]
    await registry.update("b", pinned=False, ttl_seconds=None)

    assert kept == ["a", "b", "c"]
    await until(lambda: [status.adapter_id for status in registry.list()] == ["c"])


async def test_an_id_does_not_expire_while_it_is_loaded(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """Who waits for an adapter has a use for it, however long the load takes."""
    store.write("a")
    registry = make_registry(device_bytes=store.num_bytes)
    await registry.load(spec())
    await registry.load(spec("b", source="a"))  # which evicts the first
    gate.close()
    waiting = asyncio.create_task(use(registry, "a"))
    await until(lambda: registry.get("a").state is AdapterState.LOADING)
    await registry.update("a", pinned=None, ttl_seconds=0.01)
    await asyncio.sleep(0.05)

    gate.open()

    assert (await waiting).parts[0].ref.adapter_id == "a"
    await until(lambda: "a" not in [status.adapter_id for status in registry.list()])


async def test_no_part_of_a_mix_expires_while_another_is_loaded(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A request whose first part is slow must find the second where it was."""
    for seed, name in enumerate("ab"):
        store.write(name, seed)
    registry = make_registry()
    await registry.load(spec("b"))
    await registry.scan()
    gate.close()
    waiting = asyncio.create_task(use(registry, "a", "b"))
    await until(lambda: registry.get("a").state is AdapterState.LOADING)
    await registry.update("b", pinned=None, ttl_seconds=0.01)
    await asyncio.sleep(0.05)

    gate.open()

    assert len((await waiting).parts) == 2


async def test_an_id_whose_load_failed_may_expire(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """The end of the wait sets the timer again, whatever came of it."""
    store.write("a")
    registry = make_registry(device_bytes=store.num_bytes)
    await registry.load(spec())
    await registry.load(spec("b", source="a"))
    gate.close()
    waiting = asyncio.create_task(use(registry, "a"))
    await until(lambda: registry.get("a").state is AdapterState.LOADING)
    await registry.update("a", pinned=None, ttl_seconds=0.01)
    await asyncio.sleep(0.05)
    store.write_broken("a")

    gate.open()

    with pytest.raises(AdapterLoadFailedError):
        await waiting
    await until(lambda: "a" not in [status.adapter_id for status in registry.list()])

"""Unloading, and replacing under load: nobody loses what they hold."""

import asyncio

import pytest

from lokr_core import Adapted
from lokr_serve.errors import (
    AdapterBusyError,
    AdapterDrainingError,
    AdapterNotFoundError,
    AdapterUnloadedError,
    InvalidRequestError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.callers import is_added, until, use
from tests.serve.adapters.conftest import TENSORS, Gate, MakeRegistry, Store

A = [AdapterWeight(adapter_id="a")]
LOAD_A = LoadSpec(adapter_id="a", source="a")


async def test_unload_frees_the_bytes_and_leaves_the_files(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """An unload gives memory back at once, and is not a deletion."""
    folder = store.write("a")
    registry = make_registry()
    await registry.load(LOAD_A)
    mix = await use(registry, "a")

    freed_bytes = await registry.unload("a", drain_seconds=100, force=False)

    assert freed_bytes == store.num_bytes
    assert not is_added(adapted, mix)
    assert (folder / TENSORS).exists()
    with pytest.raises(AdapterNotFoundError):
        registry.get("a")
    with pytest.raises(AdapterNotFoundError):
        await use(registry, "a")
    count = metrics.registry.get_sample_value(
        "lokr_serve_adapter_evictions_total", {"reason": "unload"}
    )
    assert count == 1
    assert (await registry.load(LOAD_A)).state is AdapterState.READY


async def test_unload_of_what_is_not_in_memory_frees_nothing(
    make_registry: MakeRegistry, store: Store
) -> None:
    """An id of the folder can be taken out of service before anybody used it."""
    store.write("a")
    registry = make_registry()
    await registry.scan()

    assert await registry.unload("a", drain_seconds=0, force=False) == 0
    with pytest.raises(AdapterNotFoundError):
        await registry.unload("a", drain_seconds=0, force=False)


async def test_a_draining_adapter_takes_no_new_requests_and_blocks_no_other_call(
    make_registry: MakeRegistry, store: Store
) -> None:
    """One slow stream must not keep the operator from anything else."""
    store.write("a")
    store.write("b", seed=2)
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED) as lease:
        unload = asyncio.create_task(registry.unload("a", drain_seconds=100, force=False))
        await asyncio.sleep(0)
        state = registry.get("a").state
        for refused in (
            use(registry, "a"),
            registry.load(LOAD_A),
            registry.update("a", pinned=True, ttl_seconds=None),
            registry.unload("a", drain_seconds=0, force=True),
        ):
            with pytest.raises(AdapterDrainingError):
                await refused
        await registry.load(LoadSpec(adapter_id="b", source="b"))
        await registry.unload("b", drain_seconds=100, force=False)
        is_ended = lease.ended.done()
    freed_bytes = await unload

    assert state is AdapterState.DRAINING
    assert not is_ended
    assert freed_bytes == store.num_bytes


async def test_an_adapter_still_busy_at_the_end_of_its_drain_serves_again(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Without force no request is harmed, and the operator hears how many there are."""
    store.write("a")
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED) as lease:
        with pytest.raises(AdapterBusyError, match="1 request;"):
            await registry.unload("a", drain_seconds=0.01, force=False)
        mix = await use(registry, "a")
        is_ended = lease.ended.done()

    assert mix == lease.mix
    assert not is_ended
    assert registry.get("a").state is AdapterState.READY


async def test_a_cancelled_unload_lets_the_adapter_serve_again(
    make_registry: MakeRegistry, store: Store
) -> None:
    """An operator who hangs up must not leave an adapter that drains for ever."""
    store.write("a")
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED):
        unload = asyncio.create_task(registry.unload("a", drain_seconds=100, force=False))
        await asyncio.sleep(0)
        unload.cancel()
        await asyncio.wait({unload})

        assert (await use(registry, "a")).parts


async def test_force_ends_the_requests_and_frees_when_they_have_let_go(
    make_registry: MakeRegistry, store: Store, adapted: Adapted
) -> None:
    """Each request is told which adapter went; the weights stay until the last is out."""
    store.write("a")
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED) as lease:
        unload = asyncio.create_task(registry.unload("a", drain_seconds=0, force=True))
        name = await lease.ended
        is_kept = is_added(adapted, lease.mix)
    freed_bytes = await unload

    assert name == "a"
    assert is_kept
    assert freed_bytes == store.num_bytes
    assert not is_added(adapted, lease.mix)


async def test_force_ends_a_request_that_still_waits_for_another_adapter(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """Neither the unload nor the request waits for what the mix would have had as well."""
    store.write("a")
    store.write("b", seed=2)
    registry = make_registry()
    await registry.scan()
    await use(registry, "a")
    gate.close()
    request = asyncio.create_task(use(registry, "a", "b"))
    await until(lambda: registry.get("a").in_flight == 1)

    freed_bytes = await registry.unload("a", drain_seconds=0, force=True)
    with pytest.raises(AdapterUnloadedError, match="'a'"):
        await request
    gate.open()

    assert freed_bytes == store.num_bytes
    assert registry.get("b").in_flight == 0


async def test_an_unload_goes_before_the_load_that_requests_wait_for(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """What has not begun cannot be drained: it is told that the adapter is gone."""
    store.write("a")
    registry = make_registry()
    await registry.scan()
    gate.close()
    request = asyncio.create_task(use(registry, "a"))
    await until(lambda: registry.get("a").state is AdapterState.LOADING)

    freed_bytes = await registry.unload("a", drain_seconds=100, force=False)
    gate.open()

    assert freed_bytes == 0
    with pytest.raises(AdapterNotFoundError):
        await request
    assert list(registry.activity().resident) == []


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
async def test_a_drain_time_must_be_a_duration(
    make_registry: MakeRegistry, store: Store, seconds: float
) -> None:
    """The field is named, and the adapter goes on serving."""
    store.write("a")
    registry = make_registry()
    await registry.load(LOAD_A)

    with pytest.raises(InvalidRequestError, match="drain_timeout"):
        await registry.unload("a", drain_seconds=seconds, force=False)

    assert registry.get("a").state is AdapterState.READY


async def test_requests_in_flight_finish_on_the_version_they_began_with(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """A replacement is seen whole by new requests and not at all by old ones."""
    store.write("a", seed=1)
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED) as old:
        store.write("a", seed=2)
        await registry.load(LoadSpec(adapter_id="a", source="a", replace=True))
        new = await use(registry, "a")
        is_kept = is_added(adapted, old.mix)
        in_flight = registry.get("a").in_flight

    assert new != old.mix
    assert is_kept
    assert in_flight == 1
    assert not is_added(adapted, old.mix)
    assert is_added(adapted, new)


async def test_an_unload_waits_for_the_requests_of_replaced_versions_too(
    make_registry: MakeRegistry, store: Store, adapted: Adapted
) -> None:
    """When an unload returns, nothing of the id is left in memory."""
    store.write("a", seed=1)
    registry = make_registry()
    await registry.load(LOAD_A)

    async with registry.lease(A, ApplyMode.UNMERGED) as old:
        store.write("a", seed=2)
        await registry.load(LoadSpec(adapter_id="a", source="a", replace=True))
        unload = asyncio.create_task(registry.unload("a", drain_seconds=0, force=True))
        name = await old.ended
    await unload

    assert name == "a"
    assert not is_added(adapted, old.mix)

"""A device whose memory is full: what loads and merges end with, and what is left behind."""

from typing import Any

import pytest
import torch

from lokr_core import Adapted, Adapter, AdapterMix, AdapterReader, Apply, MergedMix
from lokr_serve.errors import DeviceMemoryError
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, ApplyMode
from tests.serve.adapters.callers import evictions, resolve, scanned, spec, until, use
from tests.serve.adapters.conftest import MakeRegistry, Store


async def test_want_of_device_memory_is_not_the_adapters_fault(
    make_registry: MakeRegistry,
    store: Store,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a device cannot hold now it may hold in a moment, so nothing is marked as broken."""

    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("injected")

    store.write("a")
    registry = make_registry(retry_seconds=100.0)
    await registry.scan()
    with monkeypatch.context() as full:
        full.setattr(AdapterReader, "read", fail)
        with pytest.raises(DeviceMemoryError, match="adapter 'a' needs more memory"):
            await use(registry, "a")
        with pytest.raises(DeviceMemoryError):
            await registry.load(spec("b", source="a"))
    statuses = registry.list()
    await use(registry, "a")

    assert [(s.adapter_id, s.state) for s in statuses] == [("a", AdapterState.REGISTERED)]
    assert registry.get("a").state is AdapterState.READY
    assert metrics.registry.get_sample_value("lokr_serve_adapter_load_failures_total") == 2


async def test_want_of_device_memory_refuses_a_merge_and_leaves_auto_unmerged(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full device must neither look like a broken adapter nor cost a merge for every request."""
    num_tries = 0

    def fail(mix: AdapterMix) -> MergedMix:
        nonlocal num_tries
        num_tries += 1
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(adapted, "merge", fail)
    registry = await scanned(make_registry, store, "ab")

    with pytest.raises(DeviceMemoryError, match="mix 'a' merged needs more memory"):
        await resolve(registry, ApplyMode.MERGED)
    await resolve(registry, ApplyMode.AUTO)
    await until(lambda: "not merged for now" in caplog.text)
    applied = {(await resolve(registry, ApplyMode.AUTO))[1] for _ in range(3)}

    assert applied == {Apply.UNMERGED}
    assert num_tries == 2 * 2  # each once more, after caches have given back theirs


async def test_a_merge_that_lacks_memory_takes_that_of_idle_ones(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that asks for merged weights goes before what is kept for later."""
    registry = await scanned(make_registry, store, "ab")
    idle, _ = await resolve(registry, ApplyMode.MERGED, "a")
    merge = adapted.merge

    def fail_while_full(mix: AdapterMix) -> MergedMix:
        if idle in adapted.merges:
            raise torch.OutOfMemoryError("injected")
        return merge(mix)

    monkeypatch.setattr(adapted, "merge", fail_while_full)

    assert (await resolve(registry, ApplyMode.MERGED, "b"))[1] is Apply.MERGED
    assert idle not in adapted.merges


async def test_a_load_that_lacks_memory_takes_that_of_idle_adapters(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Budgets may promise what the device has not; a request goes before what nobody uses."""
    registry = await scanned(make_registry, store, "abcd")
    await use(registry, "a")
    await resolve(registry, ApplyMode.MERGED, "b")
    await registry.update("c", pinned=True, ttl_seconds=None)
    read = AdapterReader.read

    def read_if_there_is_room(*arguments: Any) -> Adapter:
        if registry.get("a").state is AdapterState.READY or adapted.merges.num_bytes:
            raise torch.OutOfMemoryError("injected")
        return read(*arguments)

    monkeypatch.setattr(AdapterReader, "read", read_if_there_is_room)
    await use(registry, "d")

    states = {status.adapter_id: status.state for status in registry.list()}
    assert states["c"] is states["d"] is AdapterState.READY
    assert states["a"] is states["b"] is AdapterState.REGISTERED
    assert evictions(metrics, "memory") == 2
    assert metrics.registry.get_sample_value("lokr_serve_merge_cache_bytes") == 0

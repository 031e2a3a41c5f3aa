"""The host tier: what is kept in memory when adapters run on another device.

The other device is torch's meta device, which keeps shapes and bytes but no numbers.
"""

import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import pytest_asyncio
import torch
from torch import nn

import lokr_core
from lokr_serve.adapters.host import HostCopy, HostTier, pin
from lokr_serve.adapters.loader import AdapterLoader
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import Residency
from lokr_serve.adapters.sources import Sources
from lokr_serve.adapters.turns import LoadTurns
from lokr_serve.adapters.workers import Workers, join
from lokr_serve.config import AdapterSettings
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterOverrides
from tests.serve.adapters.conftest import Gate, Store
from tests.tiny import tiny_llama

MakeLoader = Callable[[int], AdapterLoader]


def request(adapter_id: str, scale: float | None = None) -> LoadRequest:
    """Return a request to load an adapter from the source of its name."""
    overrides = AdapterOverrides(scale_override=scale)
    return LoadRequest(adapter_id=adapter_id, source=adapter_id, overrides=overrides)


@pytest_asyncio.fixture
async def make_loader(store: Store, metrics: Metrics) -> AsyncIterator[MakeLoader]:
    """Builds loaders for a model on another device, with so many bytes of host memory."""
    workers = Workers(1)
    adapted = lokr_core.attach(nn.Module.to(tiny_llama(), "meta"))

    def make(host_bytes: int) -> AdapterLoader:
        settings = AdapterSettings(directory=store.root, host_bytes=host_bytes)
        return AdapterLoader(
            sources=Sources(settings=settings, workers=workers, metrics=metrics),
            residency=Residency(adapted=adapted, budget_bytes=2**30, metrics=metrics),
            workers=workers,
            turns=LoadTurns(share=1.0, is_serving=lambda: False),
            settings=settings,
            metrics=metrics,
        )

    yield make
    await workers.close()


async def test_the_next_load_is_a_transfer(
    make_loader: MakeLoader, store: Store, gate: Gate, metrics: Metrics
) -> None:
    """An adapter that was evicted from the device comes back without its file."""
    store.write("a")
    loader = make_loader(10 * store.num_bytes)

    first = await join(loader.start(request("a")))
    second = await join(loader.start(request("a")))

    assert (first.buffer.device.type, second.buffer.device.type) == ("meta", "meta")
    assert second.ref == first.ref
    assert gate.num_reads["a"] == 1
    assert loader.host_bytes_of("a") == store.num_bytes
    sample = metrics.registry.get_sample_value
    assert sample("lokr_serve_adapter_load_seconds_count", {"tier": "host"}) == 1
    assert sample("lokr_serve_adapter_load_seconds_count", {"tier": "device"}) == 2
    assert sample("lokr_serve_adapters_resident", {"tier": "host"}) == 1
    assert sample("lokr_serve_adapter_bytes", {"tier": "host"}) == store.num_bytes


async def test_a_changed_file_or_request_is_read_again(
    make_loader: MakeLoader, store: Store, gate: Gate
) -> None:
    """A copy in memory must never stand for other content than a read would give."""
    store.write("a", seed=1)
    loader = make_loader(10 * store.num_bytes)
    first = await join(loader.start(request("a")))

    scaled = await join(loader.start(request("a", scale=2.0)))
    store.write("a", seed=2)
    changed = await join(loader.start(request("a", scale=2.0)))

    assert len({first.ref, scaled.ref, changed.ref}) == 3
    assert gate.num_reads["a"] == 3
    assert loader.host_bytes_of("a") == store.num_bytes


async def test_the_copy_used_least_recently_goes_first(
    make_loader: MakeLoader, store: Store, gate: Gate
) -> None:
    """Host memory has its own budget, and what does not fit is served all the same."""
    for seed, name in enumerate("abc"):
        store.write(name, seed)
    loader = make_loader(2 * store.num_bytes)

    for name in ("a", "b", "a", "c"):
        await join(loader.start(request(name)))

    assert [loader.host_bytes_of(name) for name in "abc"] == [
        store.num_bytes,
        0,
        store.num_bytes,
    ]
    assert sum(gate.num_reads.values()) == 3


async def test_without_host_memory_every_load_reads(
    make_loader: MakeLoader, store: Store, gate: Gate
) -> None:
    """The host tier spares a read and is needed for nothing else."""
    store.write("a")
    loader = make_loader(store.num_bytes - 1)

    for _ in range(2):
        await join(loader.start(request("a")))

    assert gate.num_reads["a"] == 2
    assert loader.host_bytes_of("a") == 0


async def test_an_unloaded_adapter_leaves_host_memory(
    make_loader: MakeLoader, store: Store, metrics: Metrics
) -> None:
    """An unload gives back the memory of every tier."""
    store.write("a")
    loader = make_loader(10 * store.num_bytes)
    await join(loader.start(request("a")))

    loader.discard("a")
    loader.discard("a")

    assert loader.host_bytes_of("a") == 0
    assert metrics.registry.get_sample_value("lokr_serve_adapter_bytes", {"tier": "host"}) == 0


def test_a_copy_takes_the_place_of_the_older_one(store: Store) -> None:
    """Bytes are counted once for each id, whatever order copies come in."""
    spec = lokr_core.attach(tiny_llama()).spec
    adapter = lokr_core.read_adapter(store.write("a"), spec)
    tier = HostTier(10 * adapter.num_bytes)
    copy = HostCopy(adapter=adapter, request=request("a"), fingerprint=())

    tier.put(copy)
    tier.put(replace(copy, fingerprint=(("x", 1, 2, 3),)))

    assert len(tier) == 1
    assert tier.num_bytes == adapter.num_bytes
    assert tier.get(request("a"), ()) is None
    assert tier.get(request("b"), ()) is None


def test_copies_of_one_id_from_several_threads_are_counted_once(store: Store) -> None:
    """What is counted and not there would keep others out for good."""
    spec = lokr_core.attach(tiny_llama()).spec
    adapter = lokr_core.read_adapter(store.write("a"), spec)
    tier = HostTier(10 * adapter.num_bytes)
    copy = HostCopy(adapter=adapter, request=request("a"), fingerprint=())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(tier.put, [copy] * 4000))
    finally:
        sys.setswitchinterval(interval)

    assert (len(tier), tier.num_bytes) == (1, adapter.num_bytes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_the_host_are_page_locked(store: Store) -> None:
    """A transfer from pageable memory would pass through a second buffer."""
    adapter = lokr_core.read_adapter(store.write("a"), lokr_core.attach(tiny_llama()).spec)

    pinned = pin(adapter)

    assert pinned.buffer.is_pinned()
    assert torch.equal(pinned.buffer, adapter.buffer)

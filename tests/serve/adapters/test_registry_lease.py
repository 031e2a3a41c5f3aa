"""Leases: what a request may ask for, loading on demand, and letting go."""

import asyncio
import math
import threading
from pathlib import Path

import pytest

from lokr_core import Adapter, AdapterMix, AdapterReader, Apply, ReadOptions
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterLoadFailedError,
    AdapterNotFoundError,
    InvalidRequestError,
    ShuttingDownError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState, AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.callers import (
    part,
    scanned,
    until,
    use,
)
from tests.serve.adapters.conftest import Gate, MakeRegistry, Store


async def test_a_lease_of_nothing_is_the_base_model(make_registry: MakeRegistry) -> None:
    """A request without adapters needs none of this, however it wants them applied."""
    async with make_registry().lease([], ApplyMode.MERGED) as lease:
        assert lease.mix.is_base
        assert lease.apply is Apply.UNMERGED
        assert not lease.ended.done()


async def test_a_lease_loads_what_it_names(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """A registered adapter is served by naming it, with the weights of the request."""
    registry = await scanned(make_registry, store, "ab")

    async with registry.lease([part("b", 0.5), part("a", q_proj=0.3)], ApplyMode.UNMERGED) as lease:
        status = registry.get("a")

    assert [(p.ref.adapter_id, p.weight, p.module_weights) for p in lease.mix.parts] == [
        ("a", 1.0, (("*q_proj*", 0.3),)),
        ("b", 0.5, ()),
    ]
    assert lease.mix.parts[0].ref.version == status.version
    assert (status.state, status.in_flight) == (AdapterState.READY, 1)
    assert status.last_used is not None
    assert registry.get("a").in_flight == 0
    requests = metrics.registry.get_sample_value(
        "lokr_serve_adapter_requests_total", {"adapter_id": "a"}
    )
    assert requests == 1


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([part("a"), part("b"), part("a")], "adapters[2].adapter_id"),
        ([part(str(i)) for i in range(9)], "adapters"),
        ([part("a", math.nan)], "adapters[0].weight"),
        ([part("a"), part("b", math.inf)], "adapters[1].weight"),
        ([part("../a")], "adapters[0].adapter_id"),
        ([part("a", q_proj=math.inf)], "adapters[0].module_weights['*q_proj*']"),
        ([part("a"), part("b", nowhere=1.0)], "adapters[1].module_weights"),
        ([part("a", q_proj=1.0, proj=2.0)], "adapters[0].module_weights"),
    ],
)
async def test_a_malformed_mix_names_its_field(
    make_registry: MakeRegistry, store: Store, parts: list[AdapterWeight], field: str
) -> None:
    """The caller is told which part is wrong, and nothing stays leased."""
    registry = await scanned(make_registry, store, "ab")

    with pytest.raises(InvalidRequestError) as caught:
        await use(registry, *parts)

    assert caught.value.field == field
    assert [status.in_flight for status in registry.list()] == [0, 0]


@pytest.mark.parametrize("weight", [1.0, 0.0])
async def test_an_unknown_adapter_is_not_found_and_costs_nothing(
    make_registry: MakeRegistry, store: Store, gate: Gate, weight: float
) -> None:
    """A misspelt id fails even where it would have no effect, before the others are read."""
    registry = await scanned(make_registry, store, "a")

    with pytest.raises(AdapterNotFoundError, match="'nobody'"):
        await use(registry, part("a"), part("nobody", weight))

    assert not gate.num_reads


async def test_a_part_of_weight_zero_is_not_loaded(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """It changes nothing, so it takes no memory, unless module weights bring it back."""
    registry = await scanned(make_registry, store, "ab")

    mix = await use(registry, part("a", 0.0), part("b", 0.0, q_proj=1.0))

    assert [p.ref.adapter_id for p in mix.parts] == ["b"]
    assert list(gate.num_reads) == ["b"]


async def test_two_leases_load_an_adapter_once_without_holding_up_others(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A slow load delays those who need it, and only those."""
    registry = await scanned(make_registry, store, "ab")
    await use(registry, part("b"))
    gate.close()

    waiting = [asyncio.create_task(use(registry, part("a"))) for _ in range(2)]
    await asyncio.sleep(0)
    other = await use(registry, part("b"))
    activity = registry.activity()
    gate.open()
    first, second = await asyncio.gather(*waiting)

    assert other.parts
    assert list(activity.waiting) == ["a"]
    assert list(activity.resident) == ["b"]
    assert first == second
    assert gate.num_reads["a"] == 1
    assert list(registry.activity().waiting) == []


async def test_several_adapters_load_side_by_side(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A mix waits for its slowest adapter, not for their sum."""
    registry = await scanned(make_registry, store, "ab")
    gate.close()

    waiting = asyncio.create_task(use(registry, part("a"), part("b")))
    await until(lambda: len(gate.num_reads) == 2)
    gate.open()

    assert len((await waiting).parts) == 2


async def test_a_cancelled_request_leaves_the_load_to_the_others(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A client that hangs up must not fail the request beside it, nor hold the adapter."""
    registry = await scanned(make_registry, store, "a")
    gate.close()
    cancelled, other = (asyncio.create_task(use(registry, part("a"))) for _ in range(2))
    await asyncio.sleep(0)

    cancelled.cancel()
    await asyncio.wait({cancelled})
    gate.open()

    assert (await other).parts
    assert gate.num_reads["a"] == 1
    assert registry.get("a").in_flight == 0


async def test_a_load_that_nobody_waits_for_any_more_leaks_nothing(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """Clients that hang up together leave neither bytes nor a wrong state behind."""
    registry = await scanned(make_registry, store, "a")
    gate.close()
    cancelled = asyncio.create_task(use(registry, part("a")))
    await asyncio.sleep(0)

    cancelled.cancel()
    await asyncio.wait({cancelled})
    gate.open()
    await registry.close()

    assert registry.get("a").state is AdapterState.REGISTERED
    assert registry.get("a").device_bytes == 0
    assert list(registry.activity().waiting) == []


async def test_a_mix_that_cannot_be_had_whole_holds_nothing(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A request that fails half way must give back what it had."""
    registry = await scanned(make_registry, store, "a")
    store.write_broken("broken")
    await registry.scan()

    with pytest.raises(AdapterLoadFailedError, match="'broken'"):
        await use(registry, part("a"), part("broken"))

    assert registry.get("a").in_flight == 0


async def test_mixes_larger_than_the_budget_fail_rather_than_wait_for_each_other(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Requests that each hold half of what the other needs must not stand still for ever."""
    registry = await scanned(make_registry, store, "abcd", device_bytes=3 * store.num_bytes)

    failed = asyncio.Event()

    async def hold(*names: str) -> AdapterMix:
        """Keep the lease until the other is refused: what it needs stays taken till then."""
        try:
            async with registry.lease([part(name) for name in names], ApplyMode.UNMERGED) as lease:
                await failed.wait()
                return lease.mix
        except AdapterBudgetError:
            failed.set()
            raise

    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(hold("a", "b"), hold("c", "d"), return_exceptions=True)

    assert sum(isinstance(outcome, AdapterMix) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AdapterBudgetError) for outcome in outcomes) == 1
    assert len((await use(registry, part("c"), part("d"))).parts) == 2


async def test_no_room_beside_leases_is_told_without_reading_again(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A full server must not spend its disk on adapters that it cannot hold; room heals it."""
    registry = await scanned(make_registry, store, "ab", device_bytes=store.num_bytes)

    async with registry.lease([part("a")], ApplyMode.UNMERGED):
        for _ in range(3):
            with pytest.raises(AdapterBudgetError):
                await use(registry, part("b"))
        state = registry.get("b").state
    after = await use(registry, part("b"))

    assert state is AdapterState.REGISTERED
    assert after.parts
    assert gate.num_reads["b"] == 2


async def test_a_load_goes_on_for_those_who_come_after_all_have_gone(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """Else an adapter that loads for longer than clients wait would never be there."""
    registry = await scanned(make_registry, store, "a", retry_seconds=600.0)
    store.write_broken("b")
    await registry.scan()
    gate.close()
    waiting = [asyncio.create_task(use(registry, part(name))) for name in "ab"]
    await until(lambda: gate.num_reads.total() == 2)
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    gate.open()
    await until(lambda: registry.get("a").state is AdapterState.READY)
    await until(lambda: registry.get("b").state is AdapterState.FAILED)

    assert (await use(registry, part("a"))).parts
    with pytest.raises(AdapterLoadFailedError):
        await use(registry, part("b"))
    assert gate.num_reads.total() == 2


async def test_a_failure_of_what_was_replaced_meanwhile_is_nobodys(
    make_registry: MakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waited for the old source, which is broken, is served the new one."""
    registry = await scanned(make_registry, store, "ab", retry_seconds=600.0)
    store.write_broken("a")
    is_read, may_fail, read = threading.Event(), threading.Event(), AdapterReader.read

    def slowly(
        reader: AdapterReader, path: Path, adapter_id: str | None, options: ReadOptions | None
    ) -> Adapter:
        if path.name == "a":
            is_read.set()
            assert may_fail.wait(30)
        return read(reader, path, adapter_id, options)

    monkeypatch.setattr(AdapterReader, "read", slowly)
    waiting = asyncio.create_task(use(registry, part("a")))
    assert await asyncio.to_thread(is_read.wait, 30)
    replaced = await registry.load(LoadSpec(adapter_id="a", source="b", replace=True))
    may_fail.set()

    assert (await waiting).parts[0].ref.version == replaced.version
    assert registry.get("a").error is None
    assert (await use(registry, part("a"))).parts


async def test_a_load_that_was_overtaken_is_dropped(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A request that waited for the old source is served what was loaded meanwhile."""
    registry = await scanned(make_registry, store, "ab")
    b = await registry.load(LoadSpec(adapter_id="b", source="b"))
    gate.close()
    waiting = asyncio.create_task(use(registry, part("a")))
    await asyncio.sleep(0)
    loading = asyncio.create_task(registry.load(LoadSpec(adapter_id="a", source="b", replace=True)))
    await until(lambda: gate.num_reads["b"] == 2)
    gate.open()

    replaced, mix = await loading, await waiting

    assert replaced.source == "b"
    assert replaced.digest == b.digest
    assert registry.get("a").version == replaced.version
    assert mix.parts[0].ref.adapter_id == "a"


async def test_activity_lists_what_is_in_memory_the_last_used_first(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A gateway routes by what is here, and by how much more would fit."""
    registry = await scanned(make_registry, store, "abc", device_bytes=10 * store.num_bytes)
    empty = registry.activity()
    for name in "aba":
        await use(registry, part(name))

    activity = registry.activity()

    assert (empty.max_adapters, list(empty.resident)) == (3, [])
    assert list(activity.resident) == ["a", "b"]
    assert activity.max_adapters == 10


async def test_closing_answers_requests_that_wait(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """No request may be left without an answer when the server stops."""
    registry = await scanned(make_registry, store, "ab", max_loads=1)
    gate.close()
    waiting = [asyncio.create_task(use(registry, part(name))) for name in "ab"]
    await until(lambda: bool(gate.num_reads))

    closing = asyncio.create_task(registry.close())
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    gate.open()
    await closing
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)

    assert sum(isinstance(outcome, ShuttingDownError) for outcome in outcomes) == 1

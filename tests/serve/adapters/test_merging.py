"""How a lease decides between merged and unmerged, and what merged weights cost."""

import asyncio
import threading
from collections.abc import Callable

import pytest

import lokr_core
from lokr_core import Adapted, AdapterMix, Apply, MergedMix, MergeError
from lokr_serve.errors import AdapterBudgetError, ShuttingDownError
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterWeight, ApplyMode
from tests.serve.adapters.callers import (
    num_merges,
    resolve,
    scanned,
    until,
)
from tests.serve.adapters.conftest import MakeRegistry, Store


class MergeGate:
    """Holds merges back until it is opened."""

    def __init__(self, merge: Callable[[AdapterMix], MergedMix]) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self._merge = merge

    def __call__(self, mix: AdapterMix) -> MergedMix:
        """Wait, then merge."""
        self.reached.set()
        assert self.opened.wait(30)
        return self._merge(mix)


@pytest.fixture
def merge_gate(adapted: Adapted, monkeypatch: pytest.MonkeyPatch) -> MergeGate:
    """A closed gate before the model's merges."""
    gate = MergeGate(adapted.merge)
    monkeypatch.setattr(adapted, "merge", gate)
    return gate


@pytest.fixture
def merged_bytes(adapted: Adapted, store: Store) -> int:
    """Bytes of the merged weights of one adapter of the store."""
    adapter = lokr_core.read_adapter(store.write("probe"), adapted.spec)
    adapted.add(adapter)
    return adapted.cost(AdapterMix.of({adapter.ref: 1.0})).merged_bytes


async def test_merged_on_request_is_kept_for_the_next(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """A request that pins merged gets it at once, and the second finds it there."""
    registry = await scanned(make_registry, store, "ab")

    mix, first = await resolve(registry, ApplyMode.MERGED)
    _, second = await resolve(registry, ApplyMode.MERGED)

    assert (first, second) == (Apply.MERGED, Apply.MERGED)
    assert mix in adapted.merges
    assert num_merges(metrics) == 1
    sample = metrics.registry.get_sample_value
    assert sample("lokr_serve_merge_cache_hits_total") == 1
    assert sample("lokr_serve_merge_cache_bytes") == adapted.merges.num_bytes > 0
    assert sample("lokr_serve_merge_rounding_loss_count") == 1


async def test_unmerged_on_request_never_merges(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """A pin holds whatever the traffic."""
    registry = await scanned(make_registry, store, "ab")

    applied = [(await resolve(registry, ApplyMode.UNMERGED))[1] for _ in range(5)]

    assert set(applied) == {Apply.UNMERGED}
    assert num_merges(metrics) == 0


async def test_requests_for_one_mix_merge_it_once(
    make_registry: MakeRegistry, store: Store, merge_gate: MergeGate, metrics: Metrics
) -> None:
    """A burst of requests costs one merge, and one that hangs up costs the others nothing."""
    registry = await scanned(make_registry, store, "ab")
    await resolve(registry, ApplyMode.UNMERGED)
    requests = [asyncio.create_task(resolve(registry, ApplyMode.MERGED)) for _ in range(3)]
    await until(lambda: registry.get("a").in_flight == 3)

    requests[0].cancel()
    await asyncio.wait({requests[0]})
    merge_gate.opened.set()
    outcomes = await asyncio.gather(*requests[1:])

    assert {apply for _, apply in outcomes} == {Apply.MERGED}
    assert num_merges(metrics) == 1


async def test_a_lease_keeps_merged_weights_and_its_end_lets_them_go(
    make_registry: MakeRegistry, store: Store, adapted: Adapted
) -> None:
    """Weights in use must not be dropped, and an unload leaves none behind."""
    registry = await scanned(make_registry, store, "ab")

    async with registry.lease([AdapterWeight(adapter_id="a")], ApplyMode.MERGED) as lease:
        adapted.merges.discard_adapter(lease.mix.parts[0].ref)
        is_kept = lease.mix in adapted.merges
    await registry.unload("a", drain_seconds=0, force=False)

    assert is_kept
    assert lease.mix not in adapted.merges


async def test_auto_merges_a_busy_mix_without_making_a_request_wait(
    make_registry: MakeRegistry, store: Store, merge_gate: MergeGate, adapted: Adapted
) -> None:
    """Nobody waits for a merge that they did not ask for; later requests profit."""
    registry = await scanned(make_registry, store, "ab")

    mix, first = await resolve(registry, ApplyMode.AUTO)
    _, second = await resolve(registry, ApplyMode.AUTO)
    merge_gate.opened.set()
    await until(lambda: mix in adapted.merges)
    _, third = await resolve(registry, ApplyMode.AUTO)

    assert (first, second, third) == (Apply.UNMERGED, Apply.UNMERGED, Apply.MERGED)


async def test_auto_stays_unmerged_among_other_requests(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """Merged weights that share their steps would be read beside the base's."""
    registry = await scanned(make_registry, store, "ab")

    async with (
        registry.lease([], ApplyMode.AUTO),
        registry.lease([], ApplyMode.AUTO),
        registry.lease([AdapterWeight(adapter_id="b")], ApplyMode.UNMERGED),
    ):
        _, apply = await resolve(registry, ApplyMode.AUTO)

    assert apply is Apply.UNMERGED
    assert num_merges(metrics) == 0


async def test_a_merge_in_the_background_that_comes_too_late_is_dropped(
    make_registry: MakeRegistry, store: Store, merge_gate: MergeGate, adapted: Adapted
) -> None:
    """Weights of an unloaded adapter must not take room in the cache."""
    registry = await scanned(make_registry, store, "ab")
    mix, _ = await resolve(registry, ApplyMode.AUTO)
    await asyncio.to_thread(merge_gate.reached.wait, 10)

    await registry.unload("a", drain_seconds=0, force=False)
    merge_gate.opened.set()
    await registry.close()

    assert mix not in adapted.merges
    assert adapted.merges.num_bytes == 0


async def test_closing_drops_a_merge_that_has_not_begun(
    make_registry: MakeRegistry, store: Store, merge_gate: MergeGate, adapted: Adapted
) -> None:
    """A stop of the server does not work off a queue that nobody waits for."""
    registry = await scanned(make_registry, store, "ab", max_loads=1)
    await resolve(registry, ApplyMode.UNMERGED, "b")
    await resolve(registry, ApplyMode.AUTO, "a")
    await asyncio.to_thread(merge_gate.reached.wait, 10)
    queued, _ = await resolve(registry, ApplyMode.AUTO, "b")
    waiting = asyncio.create_task(resolve(registry, ApplyMode.MERGED, "b"))

    closing = asyncio.create_task(registry.close())
    with pytest.raises(ShuttingDownError):
        await waiting
    merge_gate.opened.set()
    await closing

    assert queued not in adapted.merges


async def test_a_fault_in_a_background_merge_is_logged_and_not_repeated(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A base that cannot be merged into, quantised say, is served unmerged without fuss."""
    num_tries = 0

    def fail(mix: AdapterMix) -> MergedMix:
        nonlocal num_tries
        num_tries += 1
        raise MergeError("the base is quantised")

    monkeypatch.setattr(adapted, "merge", fail)
    registry = await scanned(make_registry, store, "ab")

    await resolve(registry, ApplyMode.AUTO)
    await until(lambda: "cannot be merged" in caplog.text)
    _, apply = await resolve(registry, ApplyMode.AUTO)

    assert apply is Apply.UNMERGED
    assert num_tries == 1
    assert "Traceback" not in caplog.text
    with pytest.raises(MergeError, match="quantised"):
        await resolve(registry, ApplyMode.MERGED)


async def test_merged_on_request_without_room_is_refused(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    merged_bytes: int,
    metrics: Metrics,
) -> None:
    """What can never fit is refused before it is computed; what is in use is not pushed out."""
    registry = await scanned(make_registry, store, "ab")

    adapted.merges.max_bytes = merged_bytes - 1
    with pytest.raises(AdapterBudgetError, match="'a' merged"):
        await resolve(registry, ApplyMode.MERGED)
    computed = num_merges(metrics)
    adapted.merges.max_bytes = merged_bytes
    async with registry.lease([AdapterWeight(adapter_id="a")], ApplyMode.MERGED):
        with pytest.raises(AdapterBudgetError, match="merge cache"):
            await resolve(registry, ApplyMode.MERGED, "b")

    assert computed == 0
    assert (await resolve(registry, ApplyMode.MERGED, "b"))[1] is Apply.MERGED


async def test_auto_without_room_stays_unmerged_and_does_not_try_at_once_again(
    make_registry: MakeRegistry,
    store: Store,
    adapted: Adapted,
    merged_bytes: int,
    merge_gate: MergeGate,
    metrics: Metrics,
) -> None:
    """A full cache must not cost a merge for every request."""
    adapted.merges.max_bytes = merged_bytes
    registry = await scanned(make_registry, store, "ab")
    merge_gate.opened.set()

    async with registry.lease([AdapterWeight(adapter_id="b")], ApplyMode.MERGED):
        merge_gate.opened.clear()
        for _ in range(100):
            await resolve(registry, ApplyMode.AUTO)
        joined = asyncio.create_task(resolve(registry, ApplyMode.MERGED))
        await until(lambda: registry.get("a").in_flight == 1)
        merge_gate.opened.set()
        with pytest.raises(AdapterBudgetError, match="merge cache"):
            await joined
        applied = {(await resolve(registry, ApplyMode.AUTO))[1] for _ in range(3)}

    assert applied == {Apply.UNMERGED}
    assert num_merges(metrics) == 2


async def test_auto_never_merges_what_cannot_fit(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """A server without a merge cache serves everything unmerged."""
    adapted.merges.max_bytes = 0
    registry = await scanned(make_registry, store, "ab")

    applied = {(await resolve(registry, ApplyMode.AUTO))[1] for _ in range(3)}

    assert applied == {Apply.UNMERGED}
    assert num_merges(metrics) == 0

"""What is in memory: the budget, the order of eviction, leases, pins and old versions."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st

import lokr_core
from lokr_core import Adapted, Adapter, AdapterMix
from lokr_serve.adapters.residency import MAX_PINNED_SHARE, LeaveReason, Residency
from lokr_serve.errors import AdapterBudgetError
from lokr_serve.metrics import Metrics
from tests.serve.adapters.callers import evictions, is_added
from tests.serve.adapters.conftest import Store

ReadAdapter = Callable[..., Adapter]
EVICTIONS = "lokr_serve_adapter_evictions_total"


@pytest.fixture
def read(store: Store, adapted: Adapted) -> ReadAdapter:
    """Returns an adapter of an id, with the content that a seed gives."""

    def read(adapter_id: str, seed: int = 1) -> Adapter:
        return lokr_core.read_adapter(store.write(adapter_id, seed), adapted.spec, adapter_id)

    return read


@pytest.fixture
def residency(adapted: Adapted, metrics: Metrics, store: Store) -> Residency:
    """Room for three adapters."""
    return Residency(adapted=adapted, budget_bytes=3 * store.num_bytes, metrics=metrics)


def gauge(metrics: Metrics, name: str) -> float | None:
    """Return a gauge of the device tier."""
    return metrics.registry.get_sample_value(name, {"tier": "device"})


def test_every_series_is_there_before_anything_happens(
    residency: Residency, metrics: Metrics
) -> None:
    """A rate over a series that appears with its first event misses that event."""
    reasons = [reason.value for reason in LeaveReason]

    values = [metrics.registry.get_sample_value(EVICTIONS, {"reason": name}) for name in reasons]

    assert values == [0.0] * len(reasons)
    assert gauge(metrics, "lokr_serve_adapters_resident") == 0
    assert gauge(metrics, "lokr_serve_adapter_bytes") == 0
    assert residency.recent(1) == []


def test_what_is_used_least_recently_goes_first(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """A busy adapter must not be reloaded because a rare one came by."""
    adapters = {name: read(name, seed) for seed, name in enumerate("abcd")}
    for name in "abc":
        residency.publish(adapters[name], pinned=False)
    used = residency.get("a")
    assert used is not None
    residency.lease(used)
    residency.release(used)

    residency.publish(adapters["d"], pinned=False)

    assert residency.get("b") is None
    assert not is_added(adapted, adapters["b"].ref)
    assert residency.recent(10) == ["d", "a", "c"]
    assert residency.recent(1) == ["d"]
    assert evictions(metrics, "budget") == 1
    assert gauge(metrics, "lokr_serve_adapters_resident") == 3
    assert gauge(metrics, "lokr_serve_adapter_bytes") == 3 * adapters["a"].num_bytes


def test_what_is_leased_or_pinned_is_not_evicted(residency: Residency, read: ReadAdapter) -> None:
    """A request in flight, or an operator's word, keeps an adapter in memory."""
    residency.publish(read("pinned", 1), pinned=True)
    residency.lease(residency.publish(read("leased", 2), pinned=False))
    residency.publish(read("idle", 3), pinned=False)

    residency.publish(read("new", 4), pinned=False)

    assert residency.recent(10) == ["new", "leased", "pinned"]


def test_without_room_nothing_changes(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """A refused load must not have cost anybody their adapter."""
    for seed, name in enumerate("abc"):
        residency.lease(residency.publish(read(name, seed), pinned=False))
    refused = read("d", 4)

    with pytest.raises(AdapterBudgetError, match="'d' needs"):
        residency.publish(refused, pinned=False)

    assert residency.recent(10) == ["c", "b", "a"]
    assert not is_added(adapted, refused.ref)
    assert evictions(metrics, "budget") == 0


def test_an_adapter_larger_than_the_budget_is_refused(
    adapted: Adapted, metrics: Metrics, store: Store, read: ReadAdapter
) -> None:
    """Evicting everything would not help, so nothing is evicted."""
    residency = Residency(adapted=adapted, budget_bytes=store.num_bytes - 1, metrics=metrics)

    with pytest.raises(AdapterBudgetError):
        residency.publish(read("a"), pinned=False)


def test_pins_leave_a_share_of_the_budget(residency: Residency, read: ReadAdapter) -> None:
    """With everything pinned, no other adapter could ever be served."""
    for seed, name in enumerate("ab"):
        residency.publish(read(name, seed), pinned=True)
    residency.publish(read("c", 3), pinned=False)

    with pytest.raises(AdapterBudgetError, match="the pin of adapter 'c'") as caught:
        residency.set_pinned("c", pinned=True)

    assert f"{int(MAX_PINNED_SHARE * 3 * read('a').num_bytes)} bytes" in str(caught.value)
    residency.set_pinned("a", pinned=False)
    residency.set_pinned("c", pinned=True)
    residency.set_pinned("c", pinned=True)
    residency.publish(read("d", 4), pinned=False)
    assert residency.recent(10) == ["d", "c", "b"]


def test_a_load_whose_pin_is_refused_changes_nothing(
    residency: Residency, read: ReadAdapter, adapted: Adapted
) -> None:
    """A load is refused as a whole, or done as a whole."""
    for seed, name in enumerate("ab"):
        residency.publish(read(name, seed), pinned=True)
    refused = read("c", 3)

    with pytest.raises(AdapterBudgetError):
        residency.publish(refused, pinned=True)

    assert residency.get("c") is None
    assert not is_added(adapted, refused.ref)


def test_the_same_version_again_is_the_same_resident(
    residency: Residency, read: ReadAdapter
) -> None:
    """Publishing what is there must not add its bytes twice."""
    first = residency.publish(read("a"), pinned=False)

    assert residency.publish(read("a"), pinned=False) is first
    assert residency.capacity == 3


def test_an_idle_version_is_freed_when_it_is_replaced(
    adapted: Adapted, metrics: Metrics, store: Store, read: ReadAdapter
) -> None:
    """Replacing needs no more room than the new version takes, pinned or not."""
    residency = Residency(adapted=adapted, budget_bytes=int(1.2 * store.num_bytes), metrics=metrics)
    old, new = read("a", 1), read("a", 2)
    residency.publish(old, pinned=True)

    residency.publish(new, pinned=True)

    assert not is_added(adapted, old.ref)
    assert is_added(adapted, new.ref)
    assert evictions(metrics, "replace") == 1


def test_a_leased_version_outlives_its_replacement(
    residency: Residency, read: ReadAdapter, adapted: Adapted
) -> None:
    """Requests in flight finish on the weights that they began with."""
    old, new = read("a", 1), read("a", 2)
    first = residency.publish(old, pinned=False)
    residency.lease(first)
    residency.lease(first)

    second = residency.publish(new, pinned=False)
    residency.release(first)
    is_kept = is_added(adapted, old.ref)
    residency.release(first)

    assert residency.get("a") is second
    assert is_kept
    assert not is_added(adapted, old.ref)
    assert is_added(adapted, new.ref)


def test_a_version_that_comes_back_while_it_is_leased_is_kept(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """The last lease of the old stay must not remove the version from under the new one."""
    old, new = read("a", 1), read("a", 2)
    first = residency.publish(old, pinned=False)
    residency.lease(first)
    residency.publish(new, pinned=False)

    again = residency.publish(old, pinned=False)
    residency.release(first)

    assert again is first
    assert is_added(adapted, old.ref)
    assert not is_added(adapted, new.ref)
    assert gauge(metrics, "lokr_serve_adapter_bytes") == old.num_bytes


def test_what_a_forward_still_uses_is_freed_later(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """A step may still run rows of a request that has let go; its bytes count until it ends."""
    adapter = read("a")
    residency.publish(adapter, pinned=False)

    with adapted.using(AdapterMix.of({adapter.ref: 1.0})):
        freed_bytes = residency.drop("a", LeaveReason.UNLOAD)
        is_kept = is_added(adapted, adapter.ref)
    residency.publish(read("b", 2), pinned=False)

    assert freed_bytes == adapter.num_bytes
    assert is_kept
    assert not is_added(adapted, adapter.ref)
    assert gauge(metrics, "lokr_serve_adapter_bytes") == adapter.num_bytes
    assert evictions(metrics, "unload") == 1


def test_what_is_about_to_be_freed_counts_as_room(
    residency: Residency, read: ReadAdapter, adapted: Adapted
) -> None:
    """A step in flight must not turn away a load that fits as soon as the step ends."""
    adapters = [read(name, seed) for seed, name in enumerate("abcd")]
    for adapter in adapters[:3]:
        residency.publish(adapter, pinned=False)

    with adapted.using(AdapterMix.of({adapter.ref: 1.0 for adapter in adapters[:3]})):
        residency.publish(adapters[3], pinned=False)

    assert residency.recent(10) == ["d", "c", "b"]


def test_a_version_that_comes_back_while_a_forward_runs_needs_its_room_again(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """What was counted as leaving must not stay for nothing, beyond the budget."""
    leaving = read("a", 1)
    residency.publish(leaving, pinned=False)

    with adapted.using(AdapterMix.of({leaving.ref: 1.0})):
        residency.drop("a", LeaveReason.UNLOAD)
        for seed, name in enumerate("bcd"):
            residency.lease(residency.publish(read(name, seed), pinned=False))
        with pytest.raises(AdapterBudgetError):
            residency.publish(leaving, pinned=False)

    assert residency.get("a") is None


def test_dropping_what_is_not_there_frees_nothing(residency: Residency) -> None:
    """A registered adapter that was never loaded has no bytes to give back."""
    assert residency.drop("a", LeaveReason.UNLOAD) == 0
    assert residency.capacity == 0


ACTIONS = ("publish", "publish pinned", "lease", "release", "pin", "unpin", "drop")
STEPS = st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abcde"), st.integers(0, 1))

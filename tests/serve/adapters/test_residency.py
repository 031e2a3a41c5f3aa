"""What is in memory: the budget, the order of eviction, leases, pins and old versions."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lokr_core
from lokr_core import Adapted, Adapter, AdapterMix, AdapterNotAddedError
from lokr_serve.adapters.residency import MAX_PINNED_SHARE, LeaveReason, Residency, Resident
from lokr_serve.errors import AdapterBudgetError
from lokr_serve.metrics import Metrics
from tests.serve.adapters.conftest import Store
from tests.tiny import tiny_llama

TINY = lokr_core.attach(tiny_llama())
ReadAdapter = Callable[..., Adapter]


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


def is_added(adapted: Adapted, adapter: Adapter) -> bool:
    """Whether the model holds an adapter."""
    try:
        adapted.check(AdapterMix.of({adapter.ref: 1.0}))
    except AdapterNotAddedError:
        return False
    return True


def evictions(metrics: Metrics, reason: str) -> float:
    """Return how many adapters have left memory for a reason."""
    return (
        metrics.registry.get_sample_value("lokr_serve_adapter_evictions_total", {"reason": reason})
        or 0.0
    )


def gauge(metrics: Metrics, name: str) -> float | None:
    """Return a gauge of the device tier."""
    return metrics.registry.get_sample_value(name, {"tier": "device"})


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
    assert not is_added(adapted, adapters["b"])
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
    assert not is_added(adapted, refused)
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
    assert not is_added(adapted, refused)


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

    assert not is_added(adapted, old)
    assert is_added(adapted, new)
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
    is_kept = is_added(adapted, old)
    residency.release(first)

    assert residency.get("a") is second
    assert is_kept
    assert not is_added(adapted, old)
    assert is_added(adapted, new)


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
    assert is_added(adapted, old)
    assert not is_added(adapted, new)
    assert gauge(metrics, "lokr_serve_adapter_bytes") == old.num_bytes


def test_what_a_forward_still_uses_is_freed_later(
    residency: Residency, read: ReadAdapter, adapted: Adapted, metrics: Metrics
) -> None:
    """A step may still run rows of a request that has let go; its bytes count until it ends."""
    adapter = read("a")
    residency.publish(adapter, pinned=False)

    with adapted.using(AdapterMix.of({adapter.ref: 1.0})):
        freed_bytes = residency.drop("a", LeaveReason.UNLOAD)
        is_kept = is_added(adapted, adapter)
    residency.publish(read("b", 2), pinned=False)

    assert freed_bytes == adapter.num_bytes
    assert is_kept
    assert not is_added(adapted, adapter)
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


def test_dropping_what_is_not_there_frees_nothing(residency: Residency) -> None:
    """A registered adapter that was never loaded has no bytes to give back."""
    assert residency.drop("a", LeaveReason.UNLOAD) == 0
    assert residency.capacity == 0


ACTIONS = ("publish", "publish pinned", "lease", "release", "pin", "unpin", "drop")
STEPS = st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abcde"), st.integers(0, 1))


@pytest.fixture(scope="session")
def versions(
    tmp_path_factory: pytest.TempPathFactory, template: Path
) -> dict[tuple[str, int], Adapter]:
    """Two versions of each of five adapters."""
    store = Store(root=tmp_path_factory.mktemp("versions"), template=template, num_bytes=0)
    return {
        (name, seed): lokr_core.read_adapter(store.write(name, seed), TINY.spec, name)
        for name in "abcde"
        for seed in range(2)
    }


@dataclass(slots=True, kw_only=True)
class Play:
    """Plays steps on a Residency and knows what must hold."""

    residency: Residency
    versions: dict[tuple[str, int], Adapter]
    leased: list[Resident] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)

    def step(self, action: str, name: str, seed: int) -> None:
        """Do one thing; a refusal for want of room is part of the game."""
        resident = self.residency.get(name)
        if action.startswith("publish"):
            self.publish(name, seed, pinned=action.endswith("pinned"))
        elif action == "release" and self.leased:
            self.residency.release(self.leased.pop(seed % len(self.leased)))
        elif action == "lease" and resident is not None:
            self.residency.lease(resident)
            self.leased.append(resident)
        elif action in {"pin", "unpin"} and resident is not None:
            self.pin(name, pinned=action == "pin")
        elif action == "drop":
            self.residency.drop(name, LeaveReason.UNLOAD)
            self.pinned.discard(name)

    def end(self) -> None:
        """Take everything out of the model again."""
        for resident in self.leased:
            self.residency.release(resident)
        for name in "abcde":
            self.residency.drop(name, LeaveReason.UNLOAD)

    def publish(self, name: str, seed: int, *, pinned: bool) -> None:
        """Publish a version, if there is room."""
        with contextlib.suppress(AdapterBudgetError):
            self.residency.publish(self.versions[name, seed], pinned=pinned)
            self.pinned = self.pinned - {name} | ({name} if pinned else set())

    def pin(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin what is in memory, if the pins leave enough."""
        with contextlib.suppress(AdapterBudgetError):
            self.residency.set_pinned(name, pinned)
            self.pinned = self.pinned - {name} | ({name} if pinned else set())


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_the_budget_leases_and_pins_hold(
    steps: list[tuple[str, str, int]], versions: dict[tuple[str, int], Adapter]
) -> None:
    """Bytes are those of what the model holds, within the budget, with all that is in use."""
    metrics = Metrics(version="test")
    num_bytes = versions["a", 0].num_bytes
    play = Play(
        residency=Residency(adapted=TINY, budget_bytes=3 * num_bytes, metrics=metrics),
        versions=versions,
    )

    for step in steps:
        play.step(*step)

        added = {adapter.ref for adapter in versions.values() if is_added(TINY, adapter)}
        assert (gauge(metrics, "lokr_serve_adapter_bytes") or 0) == len(added) * num_bytes
        assert len(added) <= 3
        assert {resident.ref for resident in play.leased} <= added
        assert play.pinned <= set(play.residency.recent(10))
        assert len(play.pinned) <= 2
    play.end()

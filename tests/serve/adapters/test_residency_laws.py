"""What holds of Residency whatever is done to it."""

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lokr_core
from lokr_core import Adapter, AdapterMix, AdapterRef
from lokr_serve.adapters.residency import LeaveReason, Residency, Resident
from lokr_serve.errors import AdapterBudgetError
from lokr_serve.metrics import Metrics
from tests.serve.adapters.callers import is_added
from tests.serve.adapters.conftest import Store
from tests.tiny import tiny_llama

TINY = lokr_core.attach(tiny_llama())
ACTIONS = ("publish", "publish pinned", "lease", "release", "pin", "unpin", "drop", "forward")
STEPS = st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abcde"), st.integers(0, 1))


def gauge(metrics: Metrics, name: str) -> float | None:
    """Return a gauge of the device tier."""
    return metrics.registry.get_sample_value(name, {"tier": "device"})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)  # a report of them would be huge
class Versions:
    """Two versions of each of five adapters."""

    adapters: dict[tuple[str, int], Adapter]


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Versions:
    """Adapters of equal size."""
    store = Store(root=tmp_path_factory.mktemp("versions"), template=template, num_bytes=0)
    adapters = {
        (name, seed): lokr_core.read_adapter(store.write(name, seed), TINY.spec, name)
        for name in "abcde"
        for seed in range(2)
    }
    return Versions(adapters=adapters)


@dataclass(slots=True, kw_only=True)
class Play:
    """Plays steps on a Residency and knows what must hold."""

    residency: Residency
    versions: Versions
    leased: list[Resident] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    running: AdapterRef | None = None  # what a forward uses
    ran: set[AdapterRef] = field(default_factory=set)  # since something was last asked for
    forwards: ExitStack = field(default_factory=ExitStack)

    def step(self, action: str, name: str, seed: int) -> None:
        """Do one thing; a refusal for want of room is part of the game."""
        resident = self.residency.get(name)
        if action in {"publish", "publish pinned", "lease"} and resident is not None:
            self.ran = {self.running} if self.running is not None else set()
        if action.startswith("publish"):
            self.publish(name, seed, pinned=action.endswith("pinned"))
        elif action == "release" and self.leased:
            self.residency.release(self.leased.pop(seed % len(self.leased)))
        elif action == "lease" and resident is not None:
            self.residency.lease(resident)
            self.leased.append(resident)
        elif action in {"pin", "unpin"} and resident is not None:
            self.pin(name, pinned=action == "pin")
        elif action == "forward":
            self.forward(resident)
        elif action == "drop":
            self.residency.drop(name, LeaveReason.UNLOAD)
            self.pinned.discard(name)

    def forward(self, resident: Resident | None) -> None:
        """End the forward that runs, and begin another, which need not hold a lease."""
        self.forwards.close()
        self.running = None
        if resident is not None:
            self.running = resident.ref
            self.ran.add(resident.ref)
            self.forwards.enter_context(TINY.using(AdapterMix.of({resident.ref: 1.0})))

    def close(self) -> None:
        """Take everything out of the model again."""
        self.forwards.close()
        for resident in self.leased:
            self.residency.release(resident)
        for name in "abcde":
            self.residency.drop(name, LeaveReason.UNLOAD)
        self.publish("a", 0, pinned=False)  # what forwards had held goes with the next load
        self.residency.drop("a", LeaveReason.UNLOAD)

    def publish(self, name: str, seed: int, *, pinned: bool) -> None:
        """Publish a version, if there is room."""
        with contextlib.suppress(AdapterBudgetError):
            self.residency.publish(self.versions.adapters[name, seed], pinned=pinned)
            self.pinned = self.pinned - {name} | ({name} if pinned else set())

    def pin(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin what is in memory, if the pins leave enough."""
        with contextlib.suppress(AdapterBudgetError):
            self.residency.set_pinned(name, pinned)
            self.pinned = self.pinned - {name} | ({name} if pinned else set())


@settings(max_examples=60)
@given(steps=st.lists(STEPS, max_size=60))
def test_whatever_happens_the_budget_leases_and_pins_hold(
    steps: list[tuple[str, str, int]], versions: Versions
) -> None:
    """Bytes are those of what the model holds, within the budget, with all that is in use."""
    metrics = Metrics(version="test")
    num_bytes = versions.adapters["a", 0].num_bytes
    play = Play(
        residency=Residency(adapted=TINY, budget_bytes=3 * num_bytes, metrics=metrics),
        versions=versions,
    )

    with contextlib.closing(play):
        for step in steps:
            play.step(*step)

            refs = {adapter.ref for adapter in versions.adapters.values()}
            added = {ref for ref in refs if is_added(TINY, ref)}
            assert (gauge(metrics, "lokr_serve_adapter_bytes") or 0) == len(added) * num_bytes
            assert len(added - play.ran) <= 3
            assert {resident.ref for resident in play.leased} <= added
            assert play.pinned <= set(play.residency.recent(10))
            assert len(play.pinned) <= 2

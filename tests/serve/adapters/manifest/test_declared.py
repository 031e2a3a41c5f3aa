"""Declared adapters: what is in memory, and under which name, follows the manifest."""

import asyncio

import pytest

from lokr_serve.adapters.residency import LeaveReason
from lokr_serve.errors import (
    AdapterDrainingError,
    AdapterNotFoundError,
)
from lokr_serve.types import AdapterState, ApplyMode
from tests.serve.adapters.callers import part, spec, until, use
from tests.serve.adapters.conftest import Gate, Store
from tests.serve.adapters.manifest.declaring import (
    Hold,
    entry,
    until_complete,
)


async def test_what_is_declared_is_registered_at_once_and_loaded(hold: Hold) -> None:
    """A restarted replica is what it was, without anybody telling it."""
    async with hold(entry("a", pinned=True), entry("x", "b", ttl_seconds=60)) as scene:
        at_once = [status.adapter_id for status in scene.registry.list()]
        await until_complete(scene)
        a, x = scene.status("a"), scene.status("x")

        assert at_once == ["a", "x"]
        assert (a.state, a.pinned, a.is_declared, a.ttl_seconds) == (
            AdapterState.READY,
            True,
            True,
            0.0,
        )
        assert (x.state, x.source, x.pinned, x.ttl_seconds) == (AdapterState.READY, "b", False, 60)
        assert (scene.count("ready"), scene.count("loading")) == (2, 0)
        assert (await use(scene.registry, "x")).name == "x"


async def test_a_manifest_of_nothing_is_complete_at_once(hold: Hold) -> None:
    """A server that declares nothing need not wait for it."""
    async with hold() as scene:
        assert scene.is_complete


async def test_the_manifest_is_followed_while_it_runs(hold: Hold) -> None:
    """Adapters come, change and go without a restart and without a call."""
    async with hold(entry("a"), entry("b")) as scene:
        await until_complete(scene)
        before = scene.status("a").version
        scene.declare(entry("a", scale_override=0.5), entry("c", pinned=True))
        await until(lambda: scene.is_ready("c") and scene.status("a").version != before)
        await until(lambda: not scene.has("b"))

        assert scene.is_ready("a")
        assert scene.status("c").pinned
        assert scene.completed == [True]


async def test_pin_and_ttl_change_without_a_load(hold: Hold, gate: Gate) -> None:
    """How an adapter is kept is no reason to read it again."""
    async with hold(entry("a", pinned=True)) as scene:
        await until_complete(scene)
        scene.declare(entry("a", ttl_seconds=30))
        await until(lambda: scene.status("a").ttl_seconds == 30)
        is_pinned = scene.status("a").pinned
        scene.declare(entry("a", pinned=True))
        await until(lambda: scene.status("a").pinned)

        assert not is_pinned
        assert scene.status("a").ttl_seconds == 0
        assert gate.num_reads["a"] == 1


async def test_requests_go_on_with_the_old_version_until_the_new_one_is_there(
    hold: Hold, gate: Gate
) -> None:
    """A replacement is one step: no request meets neither of the two."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        old = scene.status("a").version
        gate.close()
        scene.declare(entry("a", "b"))
        await until(lambda: scene.count("loading") == 1)
        async with scene.registry.lease([part("a")], ApplyMode.UNMERGED) as lease:
            gate.open()
            await until(lambda: scene.is_ready("a", "b"))
            held = lease.mix.parts[0].ref.version
        new = (await use(scene.registry, "a")).parts[0].ref.version

        assert held == old
        assert new == scene.status("a").version != old


async def test_what_is_declared_no_more_is_drained_and_unloaded(hold: Hold) -> None:
    """Its running requests end by themselves; new ones learn that it goes."""
    async with hold(entry("a"), entry("b")) as scene:
        await until_complete(scene)
        async with scene.registry.lease([part("b")], ApplyMode.UNMERGED) as lease:
            scene.declare(entry("a"))
            await until(lambda: scene.status("b").state is AdapterState.DRAINING)
            with pytest.raises(AdapterDrainingError):
                await use(scene.registry, "b")
            draining = scene.count("draining")
            was_ended = lease.ended.done()
        await until(lambda: not scene.has("b"))

        assert (draining, was_ended) == (1, False)
        with pytest.raises(AdapterNotFoundError):
            await use(scene.registry, "b")


async def test_a_drain_that_takes_long_goes_on_and_says_so(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It never takes a request by force, and never lets one in between two attempts."""
    monkeypatch.setattr("lokr_serve.adapters.manifest.declared.DRAIN_SECONDS", 0.01)
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        async with scene.registry.lease([part("a")], ApplyMode.UNMERGED) as lease:
            scene.declare()
            await until(lambda: "has 1 requests still" in caplog.text)
            state = scene.status("a").state
            assert not lease.ended.done()
        await until(lambda: not scene.has("a"))

        assert state is AdapterState.DRAINING


async def test_what_is_declared_again_while_it_drains_serves_again(hold: Hold) -> None:
    """A change that is taken back must not cost the adapter."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        async with scene.registry.lease([part("a")], ApplyMode.UNMERGED):
            scene.declare()
            await until(lambda: scene.status("a").state is AdapterState.DRAINING)
            scene.declare(entry("a", pinned=True))
            await until(lambda: scene.status("a").state is AdapterState.READY)
            await use(scene.registry, "a")

        assert scene.status("a").is_declared
        await until(lambda: scene.status("a").pinned)


async def test_an_adapter_loaded_by_hand_is_taken_over(hold: Hold) -> None:
    """From then on the manifest says what becomes of it."""
    async with hold() as scene:
        await scene.registry.load(spec("a", pinned=True, ttl_seconds=5.0, owner="team"))
        version = scene.status("a").version
        scene.declare(entry("a"))
        await until(lambda: scene.status("a").is_declared)
        taken = scene.status("a")
        record = scene.registry._catalogue.peek("a")
        scene.declare()
        await until(lambda: not scene.has("a"))

        assert (taken.version, taken.pinned, taken.ttl_seconds) == (version, False, 0.0)
        assert record is not None
        assert record.owner is None  # the client may load another in its place


async def test_an_adapter_of_the_folder_goes_back_to_it(hold: Hold) -> None:
    """The folder still has it, so the server still knows it, as it is there."""
    async with hold() as scene:
        await scene.registry.scan()
        scene.declare(entry("a", "b", pinned=True, ttl_seconds=9), entry("c", pinned=True))
        await until(lambda: scene.is_ready("a", "b") and scene.is_ready("c"))
        declared = scene.status("a").version
        scene.declare()
        await until(lambda: not scene.status("a").is_declared and not scene.status("c").is_declared)
        a, c = scene.status("a"), scene.status("c")

        assert (a.source, a.state, a.pinned, a.ttl_seconds) == (
            "a",
            AdapterState.REGISTERED,
            False,
            0,
        )
        assert (c.state, c.pinned) == (AdapterState.READY, False)  # it is what the folder has
        assert (await use(scene.registry, "a")).parts[0].ref.version != declared


async def test_a_time_to_live_frees_memory_and_keeps_the_id(hold: Hold) -> None:
    """What is declared can be asked for at any time."""
    async with hold(entry("a", ttl_seconds=0.05)) as scene:
        await until_complete(scene)
        await until(lambda: scene.status("a").state is AdapterState.REGISTERED)
        await until(lambda: scene.count("registered") == 1)

        assert (await use(scene.registry, "a")).name == "a"


async def test_a_time_to_live_that_passed_under_a_pin_counts_without_it(hold: Hold) -> None:
    """Else memory that nobody wants is taken until somebody asks for the adapter once more."""
    async with hold(entry("a", pinned=True, ttl_seconds=0.01)) as scene:
        await until_complete(scene)
        await asyncio.sleep(0.05)
        kept = scene.status("a").state
        scene.declare(entry("a", ttl_seconds=0.01))
        await until(lambda: scene.status("a").state is AdapterState.REGISTERED)

    assert kept is AdapterState.READY


async def test_more_than_fits_is_loaded_once_and_then_on_demand(hold: Hold, store: Store) -> None:
    """A manifest may be longer than memory; readiness says that all of it works."""
    budget = int(1.5 * store.num_bytes)
    async with hold(entry("a"), entry("b"), entry("c"), device_bytes=budget) as scene:
        await until_complete(scene)
        await until(lambda: (scene.count("ready"), scene.count("registered")) == (1, 2))

        assert all(scene.status(name).version for name in "abc")
        for name in "abc":
            await use(scene.registry, name)


async def test_a_pinned_adapter_that_has_left_is_brought_back(hold: Hold) -> None:
    """Whatever took it, the manifest says that it is to be there."""
    async with hold(entry("a", pinned=True)) as scene:
        await until_complete(scene)
        scene.registry._residency.drop("a", LeaveReason.BUDGET)
        assert not scene.status("a").pinned
        await until(lambda: scene.status("a").pinned)

"""How declared adapters are brought: several at a time, with patience, and with a word about it."""

import asyncio
import re

import pytest

from lokr_serve.adapters.manifest.declared import DeclaredAdapters
from lokr_serve.adapters.manifest.file import ManifestFile
from lokr_serve.adapters.manifest.reading import DeclaredAdapter, Manifest
from lokr_serve.errors import ManifestError, SourceUnavailableError
from lokr_serve.types import AdapterState
from tests.serve.adapters.callers import use
from tests.serve.adapters.conftest import Gate, Store
from tests.serve.adapters.manifest.declaring import Hold, entry, until_complete
from tests.serve.adapters.waiting import until


async def test_several_are_loaded_at_a_time_and_a_place_is_left_for_requests(
    hold: Hold, store: Store, gate: Gate
) -> None:
    """A long manifest must not keep requests for other adapters waiting."""
    for name in "defg":
        store.write(name)
    gate.close()
    async with hold(*map(entry, "abcdef"), max_loads=4) as scene:
        await until(lambda: gate.num_reads.total() == 3)
        await scene.registry.scan()
        request = asyncio.create_task(use(scene.registry, "g"))
        await until(lambda: gate.num_reads["g"] == 1)
        num_reads = gate.num_reads.total()
        gate.open()
        await request
        await until_complete(scene)

    assert num_reads == 4


async def test_a_request_for_an_adapter_that_is_being_loaded_shares_the_load(
    hold: Hold, gate: Gate
) -> None:
    """What is declared is registered before it is loaded, so requests may well be first."""
    gate.close()
    async with hold(entry("a")) as scene:
        await until(lambda: gate.num_reads["a"] == 1)
        state = scene.status("a").state
        request = asyncio.create_task(use(scene.registry, "a"))
        await asyncio.sleep(0)
        gate.open()
        await request
        await until_complete(scene)

    assert state is AdapterState.LOADING
    assert gate.num_reads["a"] == 1


async def test_what_readiness_waits_for_is_said_now_and_then(
    hold: Hold, gate: Gate, caplog: pytest.LogCaptureFixture, store: Store
) -> None:
    """An operator reads why a replica does not come up, and reads it in one line."""
    caplog.set_level("INFO")
    for name in "defghijklm":
        store.write(name)
    gate.close()
    async with hold(*map(entry, "abcdefghijklm")) as scene:
        await until(lambda: gate.num_reads.total() > 0)
        said = re.findall("not ready before .*", caplog.text)
        gate.open()
        await until_complete(scene)

    assert said == [
        "not ready before 13 declared adapters are loaded: a, b, c, d, e, f, g, h, i, j, …"
    ]
    assert "all 13 declared adapters have been loaded" in caplog.text


async def test_a_change_says_what_it_is(hold: Hold, caplog: pytest.LogCaptureFixture) -> None:
    """A log that says so tells which push did what."""
    caplog.set_level("INFO")
    async with hold(entry("a"), entry("b")) as scene:
        await until_complete(scene)
        scene.declare(entry("a", pinned=True), entry("c"))
        await until(lambda: scene.is_ready("c"))

    assert "the manifest declares 2 adapters: 1 are new, 1 have changed, 1 are gone" in caplog.text


async def test_a_manifest_that_cannot_be_taken_is_seen_in_the_metrics(
    hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else tells of it: the replica serves on as before."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        read_at = scene.sample("manifest_last_good_timestamp_seconds")
        for _ in range(2):
            scene.path.write_text("adapters: [{id: a}]")
            await until(lambda: scene.sample("manifest_good") == 0)
            scene.declare(entry("a"), entry("b"))
            await until(lambda: scene.sample("manifest_good") == 1)
        read_again_at = scene.sample("manifest_last_good_timestamp_seconds")

        assert scene.sample("manifest_errors_total") == 2
        assert scene.is_ready("a")
    assert caplog.text.count("what is declared stays as it was: adapters[0] ('a').source") == 2
    assert read_at is not None
    assert read_again_at is not None
    assert read_again_at > read_at


async def test_one_mistake_that_stays_is_counted_once(
    hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be read is looked at again and again."""
    looks = []
    async with hold(entry("a")) as scene:
        await until_complete(scene)

        def fail(file: ManifestFile) -> None:
            looks.append(file)
            raise ManifestError("the disk is gone")

        monkeypatch.setattr(ManifestFile, "look", fail)
        await until(lambda: len(looks) > 3)

        assert scene.sample("manifest_errors_total") == 1


async def test_a_source_that_says_when_to_come_again_is_not_asked_before(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is overloaded must not be asked by every replica at once, at once."""

    async def fail(declared: DeclaredAdapters, entry: DeclaredAdapter) -> None:
        raise SourceUnavailableError("s3://bucket/a", "is busy", 77.0)

    monkeypatch.setattr(DeclaredAdapters, "bring", fail)
    async with hold(entry("a")) as scene:
        await until(lambda: scene.count("failed") == 1)

    assert "tried again after 77 s" in caplog.text


async def test_a_bug_in_one_load_is_logged_and_the_others_go_on(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Adapters do not depend on each other."""
    bring = DeclaredAdapters.bring

    async def crash_on_a(declared: DeclaredAdapters, entry: DeclaredAdapter) -> None:
        if entry.adapter_id == "a":
            raise ZeroDivisionError
        await bring(declared, entry)

    with monkeypatch.context() as patch:
        patch.setattr(DeclaredAdapters, "bring", crash_on_a)
        async with hold(entry("a"), entry("b")) as scene:
            await until(lambda: scene.is_ready("b") and scene.count("failed") == 1)
            patch.undo()
            await until_complete(scene)

    assert "'a' failed unexpectedly" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_bug_in_a_pass_is_logged_and_the_next_pass_goes_on(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reconciler that has died without a word would be the worst of faults."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)

        def crash(declared: DeclaredAdapters, manifest: Manifest) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(DeclaredAdapters, "name", crash)
            await until(lambda: "could not be compared" in caplog.text)
        scene.declare(entry("b"))
        await until(lambda: scene.is_ready("b"))


async def test_a_bug_in_a_look_is_logged_and_the_manifest_is_followed_on(
    hold: Hold, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So it is with what reads the file."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)

        def crash(file: ManifestFile) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(ManifestFile, "look", crash)
            await until(lambda: scene.sample("manifest_good") == 0)
        scene.declare(entry("b"))
        await until(lambda: scene.is_ready("b"))

    assert "ZeroDivisionError" in caplog.text


async def test_adapters_stay_as_they_are_when_the_server_stops(
    hold: Hold, gate: Gate, store: Store
) -> None:
    """Requests that run out their time still need them; loads that go on wait for nobody."""
    async with hold(entry("a"), entry("b")) as scene:
        await until_complete(scene)
        gate.close()
        scene.declare(entry("a"), entry("b", "c"))
        await until(lambda: gate.num_reads["c"] == 1)
    gate.open()

    assert (await use(scene.registry, "a", "b")).name == "a+b"

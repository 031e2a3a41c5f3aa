"""Declared adapters that cannot be loaded: nothing else is served in their place, nor lost."""

from pathlib import Path

import pytest

from lokr_serve.errors import (
    AdapterLoadFailedError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterState
from tests.serve.adapters.callers import until, use
from tests.serve.adapters.conftest import Gate, MakeRegistry, Store
from tests.serve.adapters.manifest.declaring import (
    LOOK_SECONDS,
    Hold,
    declaring,
    entry,
    until_complete,
)


async def test_a_version_that_cannot_be_loaded_costs_nobody_the_one_before(
    hold: Hold, store: Store
) -> None:
    """A bad push is seen in the status and the metrics, and not by users."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        old = scene.status("a").version
        store.write_broken("bad")
        scene.declare(entry("a", "bad"))
        await until(lambda: scene.count("failed") == 1)
        status = scene.status("a")

        assert (status.state, status.version) == (AdapterState.READY, old)
        assert "not yet as the manifest declares it" in status.warnings[-1]
        assert (await use(scene.registry, "a")).parts[0].ref.version == old

        store.write("bad", seed=9)
        await until(lambda: scene.is_ready("a", "bad"))
        assert not scene.status("a").warnings


async def test_the_version_before_is_loaded_again_only_as_what_it_was(
    hold: Hold, store: Store
) -> None:
    """While the new one fails, an eviction must not bring in a third version by the back door."""
    async with hold(entry("a"), device_bytes=int(1.5 * store.num_bytes)) as scene:
        await until_complete(scene)
        old = scene.status("a").version
        scene.declare(entry("a", "missing"), entry("b"))
        await until(lambda: scene.is_ready("b"))
        again = (await use(scene.registry, "a")).parts[0].ref.version
        await use(scene.registry, "b")
        store.write("a", seed=77)

        assert again == old
        with pytest.raises(AdapterLoadFailedError, match="digest"):
            await use(scene.registry, "a")


async def test_a_wrong_digest_fails_and_is_never_served(hold: Hold) -> None:
    """What is pinned by its digest is that, or nothing; also if the folder has it, too."""
    async with hold(entry("a", digest="0" * 64)) as scene:
        await scene.registry.scan()
        await until(lambda: scene.count("failed") == 1)
        status = scene.status("a")

        assert status.state is AdapterState.FAILED
        assert status.error is not None
        assert status.error.reason == "DIGEST_MISMATCH"
        with pytest.raises(AdapterLoadFailedError, match="digest"):
            await use(scene.registry, "a")
        assert not scene.is_complete


async def test_an_adapter_of_the_folder_is_not_served_as_what_it_is_not_declared(
    hold: Hold, make_registry: MakeRegistry, store: Store, metrics: Metrics, tmp_path: Path
) -> None:
    """A file that lies under the id is no reason to serve it in place of what is declared."""
    store.write("a")
    registry = make_registry(manifest_seconds=LOOK_SECONDS, retry_seconds=100)
    await registry.scan()
    path = tmp_path / "manifest.yaml"
    async with declaring(registry, path, metrics, entry("a", digest="0" * 64)) as scene:
        with pytest.raises(AdapterLoadFailedError, match="digest"):
            await use(scene.registry, "a")


async def test_right_digest_is_taken(hold: Hold) -> None:
    """The digest is the one that the status shows."""
    async with hold(entry("a")) as scene:
        await until_complete(scene)
        digest = scene.status("a").digest
        scene.declare(entry("a", digest=f"sha256:{digest}"), entry("b", "a", digest=digest))
        await until(lambda: scene.is_ready("b", "a"))

        assert scene.is_ready("a")


async def test_a_failed_load_is_tried_again_until_it_works(hold: Hold, store: Store) -> None:
    """A source that comes late needs nobody to ask for it again."""
    async with hold(entry("late"), entry("a")) as scene:
        await until(lambda: scene.count("failed") == 1 and scene.is_ready("a"))
        was_complete = scene.is_complete
        store.write("late", seed=5)
        await until_complete(scene)

        assert not was_complete
        assert scene.is_ready("late")


async def test_a_pin_that_does_not_fit_is_told_and_tried_again(hold: Hold, store: Store) -> None:
    """Readiness must not promise what there is no room for."""
    budget = int(1.5 * store.num_bytes)
    pins = [entry("a", pinned=True), entry("b", pinned=True)]
    async with hold(*pins, device_bytes=budget) as scene:
        await until(lambda: scene.count("failed") == 1)
        states = [scene.status(name) for name in "ab"]
        (left_out,) = [status for status in states if not status.pinned]
        was_complete = scene.is_complete
        scene.declare(entry(left_out.adapter_id, pinned=True))
        await until_complete(scene)

        assert not was_complete
        assert "bytes, which the device budget" in left_out.warnings[-1]
        assert scene.status(left_out.adapter_id).pinned


async def test_an_adapter_of_no_pin_is_pinned_without_being_read_again(
    hold: Hold, store: Store, gate: Gate
) -> None:
    """Also when the pin has to wait for room."""
    async with hold(
        entry("a", pinned=True), entry("b"), device_bytes=int(2.1 * store.num_bytes)
    ) as scene:
        await until_complete(scene)
        scene.declare(entry("a", pinned=True), entry("b", pinned=True))
        await until(lambda: scene.count("failed") == 1)
        scene.declare(entry("a"), entry("b", pinned=True))
        await until(lambda: scene.status("b").pinned)

        assert gate.num_reads["b"] == 1

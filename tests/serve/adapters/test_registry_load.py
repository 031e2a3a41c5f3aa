"""Registering and loading: by the folder, by call, idempotent, replaced, failed and retried."""

import asyncio
import hashlib
import logging
import shutil

import pytest

from lokr_core import Adapted, AdapterError, AdapterFileError, AdapterMix, AdapterReader
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterExistsError,
    AdapterLoadFailedError,
    AdapterNotFoundError,
    DigestMismatchError,
    InvalidRequestError,
    SettingsError,
    ShuttingDownError,
    SourceError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterStatus,
    AdapterWeight,
    ApplyMode,
    LoadSpec,
)
from tests.serve.adapters.conftest import TENSORS, Gate, MakeRegistry, Store


def spec(adapter_id: str = "a", source: str | None = None, **fields: object) -> LoadSpec:
    """Return a request to load an id, by default from the source of the same name."""
    return LoadSpec(adapter_id=adapter_id, source=source or adapter_id, **fields)  # type: ignore[arg-type]


async def use(registry: AdapterRegistry, adapter_id: str) -> AdapterMix:
    """Lease an adapter as a request does, let go, and return its mix."""
    async with registry.lease([AdapterWeight(adapter_id=adapter_id)], ApplyMode.UNMERGED) as lease:
        return lease.mix


def failures(metrics: Metrics) -> float | None:
    """Return the number of loads that failed."""
    return metrics.registry.get_sample_value("lokr_serve_adapter_load_failures_total")


async def test_scan_registers_without_loading(make_registry: MakeRegistry, store: Store) -> None:
    """A server with thousands of adapters must start before it has read them."""
    store.write("team/a")
    registry = make_registry()

    await registry.scan()

    status = registry.get("team/a")
    assert status.state is AdapterState.REGISTERED
    assert (status.source, status.version, status.device_bytes) == ("team/a", "", 0)


async def test_scan_reports_by_log_what_it_does_not_register(
    make_registry: MakeRegistry, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator must learn why an adapter in the folder is not served."""
    store.write("x")
    (store.root / "x.safetensors").touch()
    registry = make_registry()

    with caplog.at_level(logging.WARNING):
        await registry.scan()

    assert registry.list() == []
    assert "both give the id 'x'" in caplog.text


async def test_scan_again_keeps_what_is_registered(
    make_registry: MakeRegistry, store: Store
) -> None:
    """New files become known without disturbing an id that was loaded from elsewhere."""
    store.write("a")
    store.write("other")
    registry = make_registry()
    await registry.load(spec("a", source="other"))

    await registry.scan()

    assert [status.adapter_id for status in registry.list()] == ["a", "other"]
    assert registry.get("a").source == "other"


async def test_scan_of_a_missing_folder_fails(make_registry: MakeRegistry, store: Store) -> None:
    """A misspelt folder must stop the start."""
    registry = make_registry(directory=store.root / "missing")

    with pytest.raises(SettingsError):
        await registry.scan()


async def test_load_registers_and_tells_what_it_found(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """The reply is what an operator checks a new adapter by."""
    folder = store.write("a")
    registry = make_registry()

    status = await registry.load(spec())

    assert status.state is AdapterState.READY
    assert status.digest == hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    assert (status.format, status.algorithms) == ("peft", ("lokr",))
    assert (status.device_bytes, status.host_bytes) == (store.num_bytes, 0)
    assert status.num_modules == 4
    assert status.num_parameters > 0
    assert sum(scale.num_modules for scale in status.scales) == 4
    assert (status.in_flight, status.pinned, status.last_used) == (0, False, None)
    assert len(status.version) == 16
    assert metrics.registry.get_sample_value(
        "lokr_serve_adapter_load_seconds_count", {"tier": "device"}
    )


async def test_list_is_sorted_and_filtered_by_prefix(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Pages of a listing rest on a stable order."""
    for name in ("b/2", "a", "b/1"):
        store.write(name)
    registry = make_registry()
    await registry.scan()

    every = [status.adapter_id for status in registry.list()]
    some = [status.adapter_id for status in registry.list(prefix="b/")]

    assert every == ["a", "b/1", "b/2"]
    assert some == ["b/1", "b/2"]


async def test_get_of_an_unknown_id_says_so(make_registry: MakeRegistry) -> None:
    """An unknown id has no status."""
    with pytest.raises(AdapterNotFoundError, match="'nobody'"):
        make_registry().get("nobody")


async def test_loading_the_same_content_again_changes_nothing(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Clients retry; a second load must neither fail nor swap anything."""
    store.write("a")
    shutil.copytree(store.root / "a", store.root / "copy")
    registry = make_registry()
    first = await registry.load(spec(pinned=True, ttl_seconds=100.0))

    again = await registry.load(spec())
    copy = await registry.load(spec(source="copy"))

    assert again == first
    assert copy == first


async def test_two_loads_of_one_id_read_it_once(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """Clients that load the same adapter at once must not cost two reads."""
    store.write("a")
    registry = make_registry()
    gate.close()

    loads = asyncio.gather(registry.load(spec()), registry.load(spec()))
    await asyncio.sleep(0)
    gate.open()
    first, second = await loads

    assert first == second
    assert gate.num_reads["a"] == 1


async def test_other_content_needs_replace(make_registry: MakeRegistry, store: Store) -> None:
    """An id must not change its meaning by accident, be it the file's or the overrides'."""
    store.write("a", seed=1)
    store.write("b", seed=2)
    registry = make_registry()
    before = await registry.load(spec())

    with pytest.raises(AdapterExistsError):
        await registry.load(spec(source="b"))
    with pytest.raises(AdapterExistsError):
        await registry.load(spec(overrides=AdapterOverrides(scale_override=2.0)))
    store.write("a", seed=3)
    with pytest.raises(AdapterExistsError):
        await registry.load(spec())

    assert registry.get("a") == before


async def test_another_source_for_a_registered_id_needs_replace(
    make_registry: MakeRegistry, store: Store
) -> None:
    """An id stands for its source before anybody has read it."""
    store.write("a", seed=1)
    store.write("b", seed=2)
    registry = make_registry()
    await registry.scan()

    with pytest.raises(AdapterExistsError):
        await registry.load(spec(source="b"))

    assert registry.get("a").state is AdapterState.REGISTERED
    assert (await registry.load(spec())).state is AdapterState.READY


async def test_replace_publishes_the_new_version_and_keeps_the_pin(
    make_registry: MakeRegistry, store: Store
) -> None:
    """What an operator set for the id holds for its next version."""
    store.write("a", seed=1)
    store.write("b", seed=2)
    registry = make_registry()
    old = await registry.load(spec(pinned=True))

    new = await registry.load(spec(source="b", replace=True))

    assert new.version != old.version
    assert (new.source, new.pinned) == ("b", True)
    assert [part.ref.version for part in (await use(registry, "a")).parts] == [new.version]


async def test_a_failed_load_of_a_new_id_registers_nothing(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """A broken upload must leave no trace."""
    store.write_broken("a")
    registry = make_registry()

    with pytest.raises(AdapterFileError):
        await registry.load(spec())

    assert registry.list() == []
    assert failures(metrics) == 1


async def test_a_failed_replace_leaves_the_old_version_serving(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A bad new version must not take the good one down."""
    store.write("a")
    store.write_broken("b")
    registry = make_registry()
    before = await registry.load(spec())

    with pytest.raises(AdapterFileError):
        await registry.load(spec(source="b", replace=True))

    assert registry.get("a") == before
    assert (await use(registry, "a")).parts


@pytest.mark.parametrize(
    ("source", "error"), [("missing", SourceError), ("../x", SourceError), ("", SourceError)]
)
async def test_a_source_outside_the_folder_is_refused(
    make_registry: MakeRegistry, source: str, error: type[Exception]
) -> None:
    """The store's refusals reach the caller as they are."""
    with pytest.raises(error):
        await make_registry().load(LoadSpec(adapter_id="a", source=source))


async def test_a_malformed_id_or_time_to_live_is_refused(make_registry: MakeRegistry) -> None:
    """Nothing is read for a request that can never be right."""
    registry = make_registry()

    with pytest.raises(InvalidRequestError, match=r"adapter_id: '\.\./a'"):
        await registry.load(spec("../a", source="x"))
    with pytest.raises(InvalidRequestError, match="ttl: -1"):
        await registry.load(spec(ttl_seconds=-1.0))


async def test_a_digest_must_be_that_of_the_file(make_registry: MakeRegistry, store: Store) -> None:
    """A caller who names the content must not get another."""
    digest = hashlib.sha256((store.write("a") / TENSORS).read_bytes()).hexdigest()
    registry = make_registry()

    with pytest.raises(DigestMismatchError, match=digest):
        await registry.load(spec(digest="0" * 64))
    status = await registry.load(spec(digest=digest.upper()))

    assert status.digest == digest


async def test_a_load_without_room_registers_nothing(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Want of room is told apart from a bad adapter."""
    store.write("a")
    registry = make_registry(device_bytes=store.num_bytes - 1)

    with pytest.raises(AdapterBudgetError):
        await registry.load(spec())

    assert registry.list() == []


async def test_a_file_far_beyond_the_budget_is_not_even_read(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A huge file must not fill the memory before it is refused."""
    with (store.root / "huge.safetensors").open("wb") as file:
        file.truncate(101_000_000)
    registry = make_registry(device_bytes=1000)

    with pytest.raises(AdapterBudgetError, match="101000000"):
        await registry.load(spec("huge", source="huge.safetensors"))

    assert not gate.num_reads


async def test_an_unexpected_fault_in_a_load_is_logged_and_told(
    make_registry: MakeRegistry,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug of ours in one load must neither hang a request nor stop the server."""

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of ideas")

    store.write("a")
    monkeypatch.setattr(AdapterReader, "read", fail)
    registry = make_registry()

    with pytest.raises(AdapterError, match="out of ideas"):
        await registry.load(spec())

    assert "failed unexpectedly" in caplog.text


async def fail_to_use(registry: AdapterRegistry) -> AdapterLoadFailedError:
    """Ask for adapter ``a``, which cannot be loaded, and return the refusal."""
    with pytest.raises(AdapterLoadFailedError) as caught:
        await use(registry, "a")
    return caught.value


async def test_a_failed_load_of_a_registered_id_marks_it_and_is_not_repeated_at_once(
    make_registry: MakeRegistry, store: Store, gate: Gate, metrics: Metrics
) -> None:
    """A broken adapter that is asked for must not keep the disk busy."""
    store.write_broken("a")
    registry = make_registry(retry_seconds=100.0)
    await registry.scan()

    first = await fail_to_use(registry)
    second = await fail_to_use(registry)

    status = registry.get("a")
    assert status.state is AdapterState.FAILED
    assert status.error is not None
    assert status.error.reason == "ADAPTER_FILE"
    assert status.error.message in str(first)
    assert 99 < second.retry_seconds <= first.retry_seconds <= 100
    assert gate.num_reads["a"] == 1
    assert failures(metrics) == 1


async def test_waits_between_retries_double_up_to_their_limit(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """An adapter that stays broken is tried ever less often."""
    store.write_broken("a")
    registry = make_registry(retry_seconds=0.01, max_retry_seconds=0.03)
    await registry.scan()

    waits = []
    for _ in range(4):
        waits.append((await fail_to_use(registry)).retry_seconds)
        await asyncio.sleep(waits[-1] + 0.002)

    assert waits == pytest.approx([0.01, 0.02, 0.03, 0.03], abs=1e-3)
    assert gate.num_reads["a"] == 4


async def test_a_failure_that_several_wait_for_counts_once(
    make_registry: MakeRegistry, store: Store, gate: Gate
) -> None:
    """A crowd of requests must not drive the wait to its limit by one failure."""
    store.write_broken("a")
    registry = make_registry(retry_seconds=100.0)
    await registry.scan()
    gate.close()

    crowd = asyncio.gather(*(use(registry, "a") for _ in range(5)), return_exceptions=True)
    await asyncio.sleep(0)
    state = registry.get("a").state
    gate.open()
    outcomes = await crowd

    assert state is AdapterState.LOADING
    assert all(isinstance(outcome, AdapterLoadFailedError) for outcome in outcomes)
    assert (await fail_to_use(registry)).retry_seconds <= 100


async def test_a_repaired_adapter_serves_again(make_registry: MakeRegistry, store: Store) -> None:
    """The operator's load does not wait for the back-off, and clears the failure."""
    store.write_broken("a")
    registry = make_registry(retry_seconds=100.0)
    await registry.scan()
    await fail_to_use(registry)
    with pytest.raises(AdapterFileError):
        await registry.load(spec())
    store.write("a")

    status = await registry.load(spec())

    assert (status.state, status.error) == (AdapterState.READY, None)


async def test_a_changed_file_is_read_after_eviction(
    make_registry: MakeRegistry, store: Store
) -> None:
    """What is in memory stays as it is; the next load takes what lies there, as a new version."""
    store.write("a", seed=1)
    store.write("b", seed=2)
    registry = make_registry(device_bytes=store.num_bytes)
    await registry.scan()
    old = await use(registry, "a")

    store.write("a", seed=3)
    resident = await use(registry, "a")
    await use(registry, "b")
    evicted: AdapterStatus = registry.get("a")
    new = await use(registry, "a")

    assert resident == old
    assert (evicted.state, evicted.device_bytes) == (AdapterState.REGISTERED, 0)
    assert evicted.version == old.parts[0].ref.version
    assert new != old


async def test_update_pins_and_unpins(make_registry: MakeRegistry, store: Store) -> None:
    """A pin loads the adapter at once and keeps it; what is None stays as it is."""
    for seed, name in enumerate("abc"):
        store.write(name, seed)
    registry = make_registry(device_bytes=2 * store.num_bytes)
    await registry.scan()

    pinned = await registry.update("a", pinned=True, ttl_seconds=None)
    await use(registry, "b")
    await use(registry, "c")
    kept = registry.get("a").state
    unpinned = await registry.update("a", pinned=False, ttl_seconds=None)
    untouched = await registry.update("b", pinned=False, ttl_seconds=None)

    assert (pinned.pinned, pinned.state) == (True, AdapterState.READY)
    assert kept is AdapterState.READY
    assert not unpinned.pinned
    assert untouched.state is AdapterState.REGISTERED


async def test_update_refuses_pins_that_take_everything(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Some of the budget stays for what requests ask for."""
    store.write("a")
    registry = make_registry(device_bytes=store.num_bytes)
    await registry.scan()

    with pytest.raises(AdapterBudgetError, match="the pin"):
        await registry.update("a", pinned=True, ttl_seconds=None)

    assert not registry.get("a").pinned


async def test_update_refuses_what_is_malformed_or_unknown(make_registry: MakeRegistry) -> None:
    """The field and the id are named."""
    registry = make_registry()

    with pytest.raises(InvalidRequestError, match="ttl"):
        await registry.update("a", pinned=None, ttl_seconds=float("nan"))
    with pytest.raises(AdapterNotFoundError):
        await registry.update("a", pinned=None, ttl_seconds=1.0)


async def test_a_closed_registry_loads_nothing(make_registry: MakeRegistry, store: Store) -> None:
    """A call during the shutdown is told that it may go elsewhere."""
    store.write("a")
    registry = make_registry()

    await registry.close()

    with pytest.raises(ShuttingDownError):
        await registry.load(spec())

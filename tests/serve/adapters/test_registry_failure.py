"""Loads that fail: what is left behind, what callers hear, and when it is tried again."""

import asyncio

import pytest

from lokr_core import AdapterError, AdapterFileError, AdapterReader
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.errors import (
    AdapterLoadCrashedError,
    AdapterLoadFailedError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import (
    AdapterState,
)
from tests.serve.adapters.callers import (
    spec,
    use,
)
from tests.serve.adapters.conftest import Gate, MakeRegistry, Store


def failures(metrics: Metrics) -> float | None:
    """Return the number of loads that failed."""
    return metrics.registry.get_sample_value("lokr_serve_adapter_load_failures_total")


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


def make_reads_raise(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let every read of an adapter raise an error from now on."""

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(AdapterReader, "read", fail)


async def test_a_bug_in_a_load_is_logged_and_told_as_ours(
    make_registry: MakeRegistry,
    store: Store,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It must not hang a request or stop the server, nor look like a fault of the adapter."""
    store.write("a")
    registry = make_registry()
    make_reads_raise(monkeypatch, RuntimeError("out of ideas"))

    with pytest.raises(AdapterLoadCrashedError) as caught:
        await registry.load(spec())

    assert "out of ideas" not in str(caught.value)
    assert "failed unexpectedly" in caplog.text
    assert "out of ideas" in caplog.text
    assert registry.list() == []
    assert failures(metrics) == 1


async def test_a_bug_in_a_load_marks_a_registered_id_and_is_not_repeated_at_once(
    make_registry: MakeRegistry, store: Store, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request hears of the bug, the file is not read each time, and a fix mends it."""
    store.write("a")
    registry = make_registry(retry_seconds=100.0)
    await registry.scan()
    with monkeypatch.context() as broken:
        make_reads_raise(broken, RuntimeError("out of ideas"))
        for _ in range(2):
            with pytest.raises(AdapterLoadCrashedError):
                await use(registry, "a")
    failed = registry.get("a")
    mended = await registry.load(spec())

    assert failed.state is AdapterState.FAILED
    assert failed.error is not None
    assert failed.error.reason == "ADAPTER_LOAD_CRASHED"
    assert failures(metrics) == 1
    assert (mended.state, mended.error) == (AdapterState.READY, None)


async def test_a_disk_that_fails_is_a_fault_of_the_source(
    make_registry: MakeRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever keeps the files can do something about it, and must hear what."""
    store.write("a")
    registry = make_registry()
    make_reads_raise(monkeypatch, OSError(5, "Input/output error"))

    with pytest.raises(AdapterError, match=r"source 'a' cannot be read: .*Input/output error"):
        await registry.load(spec())


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

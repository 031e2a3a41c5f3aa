"""The rest of the administration: scan, list, get and update."""

import logging

import pytest

from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterNotFoundError,
    InvalidRequestError,
    SettingsError,
)
from lokr_serve.types import (
    AdapterState,
)
from tests.serve.adapters.callers import spec, use
from tests.serve.adapters.conftest import MakeRegistry, Store


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


async def test_list_is_sorted_and_filtered_by_prefix(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Pages of a listing rest on a stable order."""
    for name in ("b/2", "a", "b/1"):
        store.write(name)
    registry = make_registry()
    await registry.scan()

    some = registry.ids(prefix="b/")

    assert [status.adapter_id for status in registry.list()] == ["a", "b/1", "b/2"]
    assert some == ["b/1", "b/2"]
    assert [status.adapter_id for status in registry.list(some)] == some


async def test_get_of_an_unknown_id_says_so(make_registry: MakeRegistry) -> None:
    """An unknown id has no status."""
    with pytest.raises(AdapterNotFoundError, match="'nobody'"):
        make_registry().get("nobody")


@pytest.mark.parametrize("adapter_id", ["", "../a", "a//b", "a" * 129])
async def test_a_malformed_id_is_refused_by_field(
    make_registry: MakeRegistry, adapter_id: str
) -> None:
    """An id that can never be registered is a mistake in the request, not an adapter to load."""
    registry = make_registry()

    with pytest.raises(InvalidRequestError, match="adapter_id: "):
        registry.get(adapter_id)
    with pytest.raises(InvalidRequestError, match="adapter_id: "):
        await registry.update(adapter_id, pinned=True, ttl_seconds=None)
    with pytest.raises(InvalidRequestError, match="adapter_id: "):
        await registry.unload(adapter_id, drain_seconds=0.0, force=False)


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

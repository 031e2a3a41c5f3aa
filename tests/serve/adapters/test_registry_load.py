"""Loading by call: idempotent, replaced, checked and refused."""

import asyncio
import hashlib
import shutil

import pytest

from lokr_core import Adapted
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterExistsError,
    DigestMismatchError,
    InvalidRequestError,
    ShuttingDownError,
    SourceError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterStatus,
    LoadSpec,
)
from tests.serve.adapters.callers import (
    spec,
    use,
)
from tests.serve.adapters.conftest import TENSORS, Gate, MakeRegistry, Store


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


async def test_another_digest_needs_replace_also_when_nothing_is_in_memory(
    make_registry: MakeRegistry, store: Store
) -> None:
    """An id with a digest stands for that content, whatever its source holds by now."""
    first = store.write("a", seed=1) / TENSORS
    old = hashlib.sha256(first.read_bytes()).hexdigest()
    store.write("b", seed=2)
    registry = make_registry(device_bytes=store.num_bytes)
    await registry.load(spec(digest=old))
    await registry.load(spec("b"))  # in its place
    new = hashlib.sha256((store.write("a", seed=3) / TENSORS).read_bytes()).hexdigest()

    for digest in (new, None):
        with pytest.raises(AdapterExistsError):
            await registry.load(spec(digest=digest))
    replaced = await registry.load(spec(digest=new, replace=True))
    await use(registry, "b")

    assert replaced.digest == new
    assert (await use(registry, "a")).parts[0].ref.version == replaced.version


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


async def test_a_closed_registry_loads_nothing(make_registry: MakeRegistry, store: Store) -> None:
    """A call during the shutdown is told that it may go elsewhere."""
    store.write("a")
    registry = make_registry()

    await registry.close()

    with pytest.raises(ShuttingDownError):
        await registry.load(spec())

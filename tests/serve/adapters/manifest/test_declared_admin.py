"""What operators can still do by hand to adapters that the manifest declares: look at them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from lokr_serve.adapters import AdapterRegistry, AnnouncedFile
from lokr_serve.errors import (
    AdapterDeclaredError,
    AdapterDrainingError,
    AdapterNotFoundError,
    InvalidRequestError,
    NotPermittedError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.servicers.accepted import leased
from lokr_serve.types import AdapterState, ApplyMode, Caller
from tests.serve.adapters.callers import part, spec, until, use
from tests.serve.adapters.conftest import Gate, MakeRegistry, Store
from tests.serve.adapters.manifest.declaring import (
    LOOK_SECONDS,
    Declaring,
    declaring,
    entry,
    until_complete,
)


@pytest_asyncio.fixture
async def scene(
    make_registry: MakeRegistry, store: Store, metrics: Metrics, tmp_path: Path
) -> AsyncIterator[Declaring]:
    """Adapters a, which is declared with the alias dawn, and b, which is not."""
    store.write("a", seed=1)
    store.write("b", seed=2)
    registry = make_registry(manifest_seconds=LOOK_SECONDS)
    declared = entry("a", aliases=["dawn"], ttl_seconds=50)
    async with declaring(registry, tmp_path / "manifest.yaml", metrics, declared) as scene:
        await until_complete(scene)
        yield scene


Change = Callable[[AdapterRegistry], Awaitable[object]]


@pytest.mark.parametrize("name", ["a", "dawn"])
@pytest.mark.parametrize(
    "change",
    [
        lambda registry, name: registry.unload(name, drain_seconds=0, force=True),
        lambda registry, name: registry.update(name, pinned=True, ttl_seconds=None),
        lambda registry, name: registry.update(name, pinned=None, ttl_seconds=9.0),
        lambda registry, name: registry.load(spec(name, "b")),
        lambda registry, name: registry.load(spec(name, "b", replace=True)),
        lambda registry, name: registry.load(spec(name, "a", pinned=True)),
        lambda registry, name: registry.load(spec(name, "a", ttl_seconds=7.0)),
    ],
)
async def test_a_change_by_hand_is_refused_with_the_place_to_make_it(
    scene: Declaring, name: str, change: Callable[[AdapterRegistry, str], Awaitable[object]]
) -> None:
    """A change that is undone a moment later is worse than an error."""
    before = scene.status("a")

    with pytest.raises(AdapterDeclaredError, match=f"'{name}' is declared by the manifest"):
        await change(scene.registry, name)
    assert scene.status("a") == before


async def test_a_load_that_would_change_nothing_is_no_error(scene: Declaring) -> None:
    """A script that makes sure that its adapter is there need not know of manifests."""
    status = await scene.registry.load(spec("a", replace=True, ttl_seconds=50.0))

    assert status.is_declared
    assert (status.state, status.ttl_seconds) == (AdapterState.READY, 50)


async def test_what_is_not_declared_is_the_operators_own(scene: Declaring) -> None:
    """The manifest says nothing of other adapters."""
    await scene.registry.load(spec("b", pinned=True))
    await scene.registry.update("b", pinned=False, ttl_seconds=3.0)
    freed_bytes = await scene.registry.unload("b", drain_seconds=0, force=False)

    assert freed_bytes > 0
    with pytest.raises(AdapterNotFoundError):
        await scene.registry.unload("b", drain_seconds=0, force=False)


async def test_an_upload_for_a_declared_id_is_refused_before_its_bytes_come(
    scene: Declaring,
) -> None:
    """Nobody sends gigabytes to hear that they are not wanted."""
    file = AnnouncedFile(num_bytes=10, digest="0" * 64)
    for name in ("a", "dawn"):
        with pytest.raises(AdapterDeclaredError):
            scene.registry.receive(spec(name), file)


async def test_a_load_that_is_overtaken_by_the_manifest_is_refused(
    scene: Declaring, gate: Gate
) -> None:
    """What the manifest says holds from the moment that it is read."""
    gate.close()
    load = asyncio.create_task(scene.registry.load(spec("c", "b")))
    await until(lambda: gate.num_reads["b"] == 1)
    scene.declare(entry("a"), entry("c", "a"))
    await until(lambda: scene.has("c"))
    gate.open()

    with pytest.raises(AdapterDeclaredError):
        await load
    await until(lambda: scene.is_ready("c", "a"))


@pytest.mark.parametrize("force", [False, True])
async def test_an_unload_that_is_overtaken_by_the_manifest_is_refused(
    scene: Declaring, force: bool
) -> None:
    """The adapter serves on, and is the manifest's."""
    await scene.registry.load(spec("b"))
    async with scene.registry.lease([part("b")], ApplyMode.UNMERGED):
        unload = asyncio.create_task(scene.registry.unload("b", drain_seconds=100, force=force))
        await until(lambda: scene.status("b").state is AdapterState.DRAINING)
        scene.declare(entry("a"), entry("b"))
        await until(lambda: scene.status("b").is_declared)

    with pytest.raises(AdapterDeclaredError):
        await unload
    assert (await use(scene.registry, "b")).name == "b"


async def test_an_unload_that_gives_up_does_not_end_the_manifests_drain(scene: Declaring) -> None:
    """What the manifest has dropped takes no requests, whoever else wanted it gone."""
    await scene.registry.load(spec("b"))
    async with scene.registry.lease([part("b")], ApplyMode.UNMERGED):
        unload = asyncio.create_task(scene.registry.unload("b", drain_seconds=100, force=False))
        await until(lambda: scene.status("b").state is AdapterState.DRAINING)
        await _let_go_of_b(scene)
        unload.cancel()
        await asyncio.wait([unload])
        with pytest.raises(AdapterDrainingError):
            await use(scene.registry, "b")

    await until(lambda: not scene.has("b"))


async def test_an_unload_and_the_manifest_may_end_the_same_adapter(scene: Declaring) -> None:
    """Both wait for the same requests; one of them frees it, and neither fails over the other."""
    await scene.registry.load(spec("b"))
    async with scene.registry.lease([part("b")], ApplyMode.UNMERGED):
        unload = asyncio.create_task(scene.registry.unload("b", drain_seconds=100, force=False))
        await until(lambda: scene.status("b").state is AdapterState.DRAINING)
        await _let_go_of_b(scene)

    assert await unload > 0
    await until(lambda: scene.count("draining") == 0)
    assert not scene.has("b")


async def test_an_unload_by_force_may_find_that_the_manifest_was_quicker(scene: Declaring) -> None:
    """It has ended the requests, and the one who waited for that longer has freed the adapter."""
    await scene.registry.load(spec("b"))
    async with scene.registry.lease([part("b")], ApplyMode.UNMERGED) as lease:
        unload = asyncio.create_task(scene.registry.unload("b", drain_seconds=1, force=True))
        await until(lambda: scene.status("b").state is AdapterState.DRAINING)
        await _let_go_of_b(scene)  # within that second
        await lease.ended

    with pytest.raises(AdapterNotFoundError):
        await unload
    assert not scene.has("b")


async def _let_go_of_b(scene: Declaring) -> None:
    """Declare b, and then no more; it is in use meanwhile."""
    scene.declare(entry("a"), entry("b"))
    await until(lambda: scene.status("b").is_declared)
    scene.declare(entry("a"))
    await until(lambda: scene.count("draining") == 1 and not scene.status("b").is_declared)


async def test_an_alias_is_as_good_as_its_id_in_requests(scene: Declaring) -> None:
    """Replies and canonical names have the id, so caches and gateways see one adapter."""
    by_alias = await use(scene.registry, part("dawn", 0.5))
    by_id = await use(scene.registry, part("a", 0.5))

    assert by_alias == by_id
    assert by_alias.name == "a*0.5"
    assert scene.registry.resolve("dawn") == "a"
    assert scene.status("dawn") == scene.status("a")
    assert scene.status("a").aliases == ("dawn",)
    assert [status.adapter_id for status in scene.registry.list()] == ["a"]
    with pytest.raises(InvalidRequestError, match="'dawn' and 'a' are both 'a'"):
        await use(scene.registry, "a", "dawn")


async def test_who_may_not_use_what_an_alias_means_learns_nothing_of_it(scene: Declaring) -> None:
    """Not even why it cannot be loaded, if the alias moved after the request was let in."""
    scene.declare(entry("a"), entry("b", "missing", aliases=["mine/best"]))
    await until(lambda: scene.registry.resolve("mine/best") == "b")
    token = caller_variable.set(Caller(name="me", permissions=frozenset(), adapters=("mine/*",)))
    with pytest.raises(NotPermittedError, match="the adapter that 'mine/best' is an alias of"):
        async with leased(scene.registry, [part("mine/best")], ApplyMode.AUTO):
            pass
    caller_variable.reset(token)


async def test_gateways_see_the_aliases_of_what_is_in_memory(scene: Declaring) -> None:
    """They route by the name that a request has."""
    assert list(scene.registry.activity().resident) == ["a", "dawn"]


async def test_an_alias_moves_to_the_next_version_in_one_step(scene: Declaring, gate: Gate) -> None:
    """A release by alias: requests go from the one to the other, and none fails between."""
    gate.close()
    scene.declare(entry("b", aliases=["dawn"]))
    await until(lambda: scene.has("b") and scene.status("b").state is AdapterState.LOADING)
    async with scene.registry.lease([part("dawn")], ApplyMode.UNMERGED) as lease:
        gate.open()
        await until(lambda: scene.status("b").aliases == ("dawn",))
        after = await use(scene.registry, "dawn")
        held = lease.mix.name
        was_ended = lease.ended.done()
    await until(lambda: not scene.has("a"))

    assert (held, after.name, was_ended) == ("a", "b", False)


async def test_an_alias_stays_with_what_works_while_its_next_adapter_does_not(
    scene: Declaring, store: Store
) -> None:
    """And what it stands for stays, though the manifest has dropped it."""
    store.write_broken("bad")
    scene.declare(entry("bad", aliases=["dawn"]))
    await until(lambda: scene.count("failed") == 1)

    assert (await use(scene.registry, "dawn")).name == "a"
    assert scene.status("a").is_declared
    store.write("bad", seed=3)
    await until(lambda: not scene.has("a"))
    assert (await use(scene.registry, "dawn")).name == "bad"


async def test_an_alias_hides_an_adapter_of_its_name_and_says_so(
    scene: Declaring, caplog: pytest.LogCaptureFixture
) -> None:
    """All replicas must agree on a name, whatever lies in the folder of one."""
    await scene.registry.load(spec("b"))
    scene.declare(entry("a", aliases=["b"]))
    await until(lambda: scene.status("a").aliases == ("b",))

    assert (await use(scene.registry, "b")).name == "a"
    assert "adapter 'b' cannot be named" in caplog.text
    assert await scene.registry.unload("b", drain_seconds=0, force=False) > 0  # by hand, still
    with pytest.raises(AdapterDeclaredError):
        await scene.registry.unload("b", drain_seconds=0, force=False)


async def test_a_change_of_a_hidden_adapter_tells_of_that_adapter(scene: Declaring) -> None:
    """Not of the one that the alias stands for, which the caller may not even be allowed to see."""
    await scene.registry.load(spec("b"))
    scene.declare(entry("a", aliases=["b"]))
    await until(lambda: scene.status("a").aliases == ("b",))

    changed = await scene.registry.update("b", pinned=True, ttl_seconds=None)

    assert (changed.adapter_id, changed.pinned) == ("b", True)


async def test_a_declared_id_can_become_an_alias(scene: Declaring) -> None:
    """Its name means the old adapter until the new one is there, and then the new one."""
    scene.declare(entry("b", aliases=["a"]))
    await until(lambda: scene.has("b") and scene.status("b").aliases == ("a",))
    await until(lambda: [status.adapter_id for status in scene.registry.list()] == ["b"])

    assert (await use(scene.registry, "a")).name == "b"


async def test_an_alias_can_become_a_declared_id(scene: Declaring, store: Store) -> None:
    """Its name means the old adapter until the new one is there, and so that one stays."""
    store.write_broken("bad")
    scene.declare(entry("dawn", "bad"))
    await until(lambda: scene.count("failed") == 1)
    before = await use(scene.registry, "dawn")
    store.write("bad", seed=3)
    await until(lambda: not scene.has("a"))

    assert before.name == "a"
    assert (await use(scene.registry, "dawn")).name == "dawn"

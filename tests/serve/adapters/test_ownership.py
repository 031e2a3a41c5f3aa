"""How many bytes of adapters a client may have."""

import pytest

from lokr_serve.adapters import AdapterRegistry
from lokr_serve.errors import LimitExceededError
from tests.serve.adapters.callers import spec, use
from tests.serve.adapters.conftest import MakeRegistry, Store


class Client:
    """A client of a registry that may have the bytes of so many adapters."""

    def __init__(self, registry: AdapterRegistry, store: Store, name: str, count: float) -> None:
        self._registry = registry
        self._name = name
        self._max_bytes = int(count * store.num_bytes)

    async def load(self, adapter_id: str, source: str | None = None, **fields: object) -> None:
        """Load an adapter as one of the client's."""
        owned = {"owner": self._name, "max_owner_bytes": self._max_bytes, **fields}
        await self._registry.load(spec(adapter_id, source or adapter_id, **owned))


def ids(registry: AdapterRegistry) -> list[str]:
    """Return what is registered."""
    return [status.adapter_id for status in registry.list()]


@pytest.fixture
def registry(make_registry: MakeRegistry, store: Store) -> AdapterRegistry:
    """A registry with room for two adapters, over a folder of three that it does not know."""
    for seed, name in enumerate("abc"):
        store.write(name, seed)
    return make_registry(device_bytes=2 * store.num_bytes)


async def test_what_is_too_much_is_refused_and_leaves_nothing(
    registry: AdapterRegistry, store: Store
) -> None:
    """Evicted adapters count as well: they come back whenever a request names them."""
    team = Client(registry, store, "team", 2.5)
    await team.load("a")
    await team.load("b")

    with pytest.raises(LimitExceededError, match=r"client 'team' may have .* of 'c'; unload") as no:
        await team.load("c")
    assert no.value.retry_seconds is None
    assert ids(registry) == ["a", "b"]
    await Client(registry, store, "another", 1).load("c")
    with pytest.raises(LimitExceededError):
        await team.load("d", "c")


async def test_an_unload_gives_back(registry: AdapterRegistry, store: Store) -> None:
    """Else a client could load only so often in the server's life."""
    team = Client(registry, store, "team", 1)
    for _ in range(3):
        await team.load("a")
        await registry.unload("a", drain_seconds=0, force=False)
    await team.load("b")

    assert ids(registry) == ["b"]


async def test_a_replacement_counts_in_place_of_what_it_replaces(
    registry: AdapterRegistry, store: Store
) -> None:
    """A new version of an adapter is no second one."""
    team = Client(registry, store, "team", 1)
    await team.load("a")
    await team.load("a", "b", replace=True)

    with pytest.raises(LimitExceededError):
        await team.load("b")


async def test_whoever_replaces_an_adapter_owns_it(registry: AdapterRegistry, store: Store) -> None:
    """What it takes counts for the one who chose it."""
    first, second = (Client(registry, store, name, 1) for name in ("first", "second"))
    await first.load("a")
    await second.load("a", "b", replace=True)
    await first.load("c")

    with pytest.raises(LimitExceededError):
        await second.load("d", "a")


async def test_loading_what_is_there_already_makes_nobody_its_owner(
    registry: AdapterRegistry, store: Store
) -> None:
    """It changes nothing, so it is neither refused nor counted; nor are folders' adapters."""
    first, second = Client(registry, store, "first", 1), Client(registry, store, "second", 0)
    await first.load("a")
    await second.load("a")
    await registry.scan()
    await use(registry, "b")
    await second.load("b")

    with pytest.raises(LimitExceededError, match="has 0"):
        await second.load("new", "c")


async def test_those_without_a_name_are_limited_together_if_at_all(
    registry: AdapterRegistry, store: Store
) -> None:
    """Without credentials there is one client, whom only the settings limit."""
    nobody = Client(registry, store, "", 1)
    await nobody.load("a")

    with pytest.raises(LimitExceededError, match="every client without a name"):
        await nobody.load("b")
    await registry.load(spec("b"))
    assert ids(registry) == ["a", "b"]


async def test_what_lies_in_the_adapter_folder_is_nobodys(
    registry: AdapterRegistry, store: Store
) -> None:
    """Not of those without a name either: they did not put it there."""
    await registry.scan()
    await use(registry, "a")
    nobody = Client(registry, store, "", 1)
    await nobody.load("new", "b")

    with pytest.raises(LimitExceededError):
        await nobody.load("newer", "c")

"""What gateways are told of mixes, and of room."""

from lokr_serve.adapters.activity import MAX_MIXES
from lokr_serve.metrics import Metrics
from lokr_serve.types import ApplyMode
from tests.serve.adapters.callers import part, scanned, use
from tests.serve.adapters.conftest import MakeRegistry, Store


async def test_a_mix_is_told_by_its_name_while_all_of_it_is_in_memory(
    make_registry: MakeRegistry, store: Store
) -> None:
    """What would be served without a load is worth a detour; what would not is not."""
    registry = await scanned(make_registry, store, "abc", device_bytes=2 * store.num_bytes)
    mix = await use(registry, part("b", 0.5), part("a"))
    await use(registry, part("a", 2))
    whole = registry.activity()
    await use(registry, part("c"))  # takes the place of b

    assert mix.name == "a+b*0.5"
    assert list(whole.resident) == ["a", "b", "a*2", "a+b*0.5"]
    assert list(registry.activity().resident) == ["c", "a", "a*2"]


async def test_names_that_take_no_memory_leave_the_room_as_it_is(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A gateway takes the difference between the limit and the names for room."""
    registry = await scanned(make_registry, store, "abc", device_bytes=5 * store.num_bytes)
    await use(registry, part("a"))
    before = registry.activity()
    await use(registry, part("a", 0.5))
    after = registry.activity()

    assert before.max_adapters - len(list(before.resident)) == 4
    assert after.max_adapters - len(list(after.resident)) == 4
    assert len(list(after.resident)) == 2


async def test_a_mix_of_an_older_version_is_not_told(
    make_registry: MakeRegistry, store: Store
) -> None:
    """The mix of that name would now be another one, which nobody has asked for yet."""
    registry = await scanned(make_registry, store, "a")
    await use(registry, part("a", 2))
    await registry.unload("a", drain_seconds=0, force=False)
    store.write("a", seed=2)
    await registry.scan()
    await use(registry, part("a"))

    assert list(registry.activity().resident) == ["a"]


async def test_mixes_are_forgotten_beyond_a_limit(
    make_registry: MakeRegistry, store: Store
) -> None:
    """Weights are made up by callers for ever; a label is not."""
    registry = await scanned(make_registry, store, "a")
    for weight in range(2, MAX_MIXES + 4):
        await use(registry, part("a", weight))
    names = list(registry.activity().resident)

    assert len(names) == 1 + MAX_MIXES
    assert names[:2] == ["a", f"a*{MAX_MIXES + 3}"]


async def test_free_and_evictable_bytes_add_up(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """An operator sees whether one more adapter would fit, and at whose expense."""
    registry = await scanned(make_registry, store, "ab", device_bytes=3 * store.num_bytes)

    def shown(name: str) -> float | None:
        return metrics.registry.get_sample_value(f"lokr_serve_adapter_{name}", {"tier": "device"})

    await use(registry, part("a"))
    async with registry.lease([part("b")], ApplyMode.UNMERGED):
        during = shown("free_bytes"), shown("evictable_bytes"), shown("bytes")

    assert list(during) == [store.num_bytes, store.num_bytes, 2 * store.num_bytes]
    assert shown("evictable_bytes") == 2 * store.num_bytes

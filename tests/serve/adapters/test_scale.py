"""Thousands of adapters: what registering and keeping them costs."""

import time
import tracemalloc

from lokr_core import Adapted
from lokr_serve.types import AdapterWeight, ApplyMode
from tests.serve.adapters.conftest import MakeRegistry, Store

NUM_REGISTERED = 10_000


async def test_ten_thousand_ids_register_quickly_in_little_memory(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A server starts as fast with a full store as with an empty one, nearly."""
    for index in range(NUM_REGISTERED):
        (store.root / f"style-{index}.safetensors").touch()
    registry = make_registry()

    tracemalloc.start()
    started = time.perf_counter()
    await registry.scan()
    seconds = time.perf_counter() - started
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(registry.list()) == NUM_REGISTERED
    assert num_bytes < 1024 * NUM_REGISTERED
    assert seconds < 4  # under the tracer; about a tenth without it


async def test_a_lease_costs_the_same_among_few_and_many(
    make_registry: MakeRegistry, store: Store, adapted: Adapted
) -> None:
    """Nothing on the way of a request may walk over all adapters."""
    for index in range(300):
        store.write(f"a{index}", seed=index)
    registry = make_registry()
    await registry.scan()

    async def seconds_of_leases() -> float:
        started = time.perf_counter()
        for _ in range(200):
            async with registry.lease([AdapterWeight(adapter_id="a0")], ApplyMode.UNMERGED):
                pass
        return time.perf_counter() - started

    await seconds_of_leases()
    among_few = min([await seconds_of_leases() for _ in range(3)])
    for index in range(300):
        async with registry.lease([AdapterWeight(adapter_id=f"a{index}")], ApplyMode.UNMERGED):
            pass
    among_many = min([await seconds_of_leases() for _ in range(3)])

    assert among_many < 2 * among_few

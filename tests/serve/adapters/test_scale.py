"""Thousands of adapters: what registering and keeping them costs."""

import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from lokr_core import Adapted
from lokr_serve.types import AdapterWeight, ApplyMode
from tests.serve.adapters.conftest import MakeRegistry, Store

if TYPE_CHECKING:
    from _typeshed import TraceFunction

NUM_REGISTERED = 10_000
NUM_READY = 300


@dataclass(slots=True)
class Steps:
    """Instructions of Python that ran: a cost that is the same on a busy machine."""

    count: int = 0

    def trace(self, frame: FrameType, event: str, _arg: object) -> "TraceFunction":
        """Count; the interpreter calls this at each instruction."""
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self.trace


@contextmanager
def counted_steps() -> Iterator[Steps]:
    """Count the steps of what is called in the block, here and in threads that start in it."""
    here, in_threads, steps = sys.gettrace(), threading.gettrace(), Steps()
    threading.settrace(steps.trace)
    sys.settrace(steps.trace)
    try:
        yield steps
    finally:
        sys.settrace(here)
        threading.settrace(in_threads)


async def test_ten_thousand_ids_register_in_few_steps_and_little_memory(
    make_registry: MakeRegistry, store: Store
) -> None:
    """A server starts as fast with a full store as with an empty one, nearly."""
    for index in range(NUM_REGISTERED):
        (store.root / f"style-{index}.safetensors").touch()
    registry = make_registry()

    tracemalloc.start()
    with counted_steps() as steps:
        await registry.scan()
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(registry.list()) == NUM_REGISTERED
    assert num_bytes < 1024 * NUM_REGISTERED
    assert NUM_REGISTERED < steps.count < 300 * NUM_REGISTERED


async def test_a_lease_costs_the_same_among_few_and_many(
    make_registry: MakeRegistry, store: Store, adapted: Adapted
) -> None:
    """Nothing on the way of a request may walk over all adapters: that takes a step for each."""
    for index in range(NUM_READY):
        store.write(f"a{index}", seed=index)
    registry = make_registry()
    await registry.scan()

    async def lease(adapter_id: str) -> int:
        with counted_steps() as steps:
            async with registry.lease([AdapterWeight(adapter_id=adapter_id)], ApplyMode.UNMERGED):
                pass
        return steps.count

    await lease("a0")
    among_few = min([await lease("a0") for _ in range(3)])
    for index in range(NUM_READY):
        await lease(f"a{index}")
    among_many = min([await lease("a0") for _ in range(3)])

    assert among_few > 0
    assert among_many < among_few + NUM_READY

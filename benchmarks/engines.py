"""The registry and the engine, without the server around them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import LlamaForCausalLM

import lokr_core
from benchmarks.models import twin_of
from benchmarks.streams import NUM_PROMPT_TOKENS, greedy
from lokr_core import Adapted
from lokr_serve.adapters import AdapterRegistry, Lease
from lokr_serve.config import AdapterSettings, TextSettings
from lokr_serve.metrics import Metrics
from lokr_serve.text import Generation, TextEngine
from lokr_serve.types import AdapterWeight, ApplyMode, GenerationEvent, LoadSpec

Value = TypeVar("Value")

MAX_LOADS = 4  # at the same time
DEVICE_BYTES = 2**33  # so much that nothing is evicted
TEXT = TextSettings(cache_tokens=2**14)


def adapter_settings(folder: Path) -> AdapterSettings:
    """Return the settings of a registry over an adapter folder."""
    return AdapterSettings(directory=folder, device_bytes=DEVICE_BYTES, max_loads=MAX_LOADS)


def random_prompt(draw: random.Random, vocab: int, num_tokens: int) -> tuple[int, ...]:
    """Return a prompt that no prefix cache has seen."""
    return tuple(draw.randrange(vocab) for _ in range(num_tokens))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Serving:
    """What a server is made of, on the running event loop."""

    adapted: Adapted
    registry: AdapterRegistry
    engine: TextEngine
    draw: random.Random

    async def load(self, ids: Iterable[str]) -> None:
        """Load adapters, several at once."""
        pending = iter(ids)

        async def work() -> None:
            for adapter_id in pending:
                await self.registry.load(LoadSpec(adapter_id=adapter_id, source=adapter_id))

        await asyncio.gather(*(work() for _ in range(MAX_LOADS)))

    @asynccontextmanager
    async def lease(self, adapter_id: str) -> AsyncIterator[Lease]:
        """Hold one adapter, to be applied unmerged."""
        parts = [AdapterWeight(adapter_id=adapter_id)]
        async with self.registry.lease(parts, ApplyMode.UNMERGED) as lease:
            yield lease

    def generate(
        self, lease: Lease, prompt_ids: tuple[int, ...], max_tokens: int
    ) -> AsyncIterator[GenerationEvent]:
        """Yield the events of one request."""
        generation = Generation(
            request_id="benchmark",
            mix=lease.mix,
            apply=lease.apply,
            prompt_ids=prompt_ids,
            sampling=greedy(max_tokens),
            seed=0,
            accepted_at=time.monotonic(),
        )
        return self.engine.generate(generation)

    async def first_token(self, adapter_id: str) -> float:
        """Return the seconds of a request for one token, the lease included."""
        vocab = self.engine.prompt_limits.vocab_size
        prompt_ids = random_prompt(self.draw, vocab, NUM_PROMPT_TOKENS)
        began = time.perf_counter()
        async with self.lease(adapter_id) as lease:
            async for _ in self.generate(lease, prompt_ids, 1):
                pass
        return time.perf_counter() - began


@asynccontextmanager
async def serving(model: LlamaForCausalLM, folder: Path) -> AsyncIterator[Serving]:
    """Serve a twin of the model, with the adapters of a folder registered."""
    adapted = lokr_core.attach(twin_of(model))
    metrics = Metrics(version="benchmark")
    registry = AdapterRegistry(adapted=adapted, settings=adapter_settings(folder), metrics=metrics)
    engine = TextEngine(adapted=adapted, tokenizer=None, settings=TEXT, metrics=metrics)
    try:
        await registry.scan()
        engine.start()
        yield Serving(adapted=adapted, registry=registry, engine=engine, draw=random.Random(0))
    finally:
        await engine.stop()
        await registry.close()


@contextmanager
def entered(runner: asyncio.Runner, context: AbstractAsyncContextManager[Value]) -> Iterator[Value]:
    """Hold an asynchronous context where the calls around it are not."""
    stack = AsyncExitStack()
    try:
        yield runner.run(stack.enter_async_context(context))
    finally:
        runner.run(stack.aclose())

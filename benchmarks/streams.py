"""Streams of one request each, all at once, and how long they take together."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from lokr_serve.client import AsyncClient
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    Chunk,
    Finished,
    GenerationRequest,
    SamplingParams,
    Started,
    TokenPrompt,
)

NUM_PROMPT_TOKENS = 64
NUM_STREAM_PROMPT_TOKENS = 8  # few, so that decoding is what is measured


def greedy(max_tokens: int) -> SamplingParams:
    """Return greedy sampling of exactly so many tokens."""
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that are sent at the same time."""

    ids: Sequence[str]  # the adapter of each
    max_tokens: int
    vocab: int

    def prompt(self, index: int) -> tuple[int, ...]:
        """Return the prompt of one stream."""
        return tuple((17 * index + 5 * i) % self.vocab for i in range(NUM_STREAM_PROMPT_TOKENS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a load took."""

    seconds: float
    cpu_seconds: float  # of this process
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """All streams together."""
        return self.num_tokens / self.seconds


async def spend(stream: Callable[[int], Coroutine[None, None, int]], load: Load) -> Spent:
    """Run ``stream`` for each index at once; it returns the number of its tokens."""
    began, cpu_began = time.perf_counter(), time.process_time()
    counts = await asyncio.gather(*(stream(index) for index in range(len(load.ids))))
    return Spent(
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu_began,
        num_tokens=sum(counts),
    )


def tokens_of(event: Started | Chunk | Finished) -> int:
    """Return how many tokens an event carries."""
    return len(event.token_ids) if isinstance(event, Chunk) else 0


def call_server(address: str, load: Load) -> Spent:
    """Send a load to a server, once the connection is there; to be run in its own process."""
    return asyncio.run(_call_server(address, load))


async def _call_server(address: str, load: Load) -> Spent:
    async with AsyncClient(address) as client:
        await client.health()

        async def stream(index: int) -> int:
            request = GenerationRequest(
                prompt=TokenPrompt(ids=load.prompt(index)),
                adapters=(AdapterWeight(adapter_id=load.ids[index]),),
                sampling=greedy(load.max_tokens),
                apply_mode=ApplyMode.UNMERGED,
            )
            return sum([tokens_of(event) async for event in client.generate(request)])

        return await spend(stream, load)

"""Load: streams and unary calls through the client library, and how each of them ended."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from lokr_serve.client import AsyncClient, ClientError
from lokr_serve.types import (
    AdapterWeight,
    Chunk,
    Finished,
    GenerationRequest,
    SamplingParams,
    TextPrompt,
)

STREAM_TOKENS = (60, 60, 60, 60, 60, 60, 60, 900)  # in turn; some outlive their replica's notice
UNARY_TOKENS = 4
TIMEOUT_SECONDS = 240.0  # of streams of many tokens on a machine that does much else


def request(adapter_id: str | None, max_tokens: int) -> GenerationRequest:
    """Return a request of exactly so many tokens, of the base model if no adapter is named."""
    return GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=() if adapter_id is None else (AdapterWeight(adapter_id=adapter_id),),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many calls run at the same time."""

    num_streams: int
    num_unary: int
    pause_seconds: float = 0.0  # between two calls of a task


Call = Callable[[AsyncClient], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How calls ended."""

    num_streams: int = 0  # that were complete: every token came, and the end
    num_unary: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by kind of call, code and message
    max_gap_seconds: float = 0.0  # between two ends of calls
    _last_end: float = field(default_factory=time.monotonic)

    @property
    def num_calls(self) -> int:
        """Return how many calls ended, well or not."""
        return self.num_streams + self.num_unary + self.failures.total()

    def note_end(self) -> None:
        """Note that a call ended just now."""
        now = time.monotonic()
        self.max_gap_seconds = max(self.max_gap_seconds, now - self._last_end)
        self._last_end = now


class Load:
    """Calls of one client, one after the other in each of some tasks, until it is stopped."""

    def __init__(self, address: str, shape: Shape, adapter_ids: Sequence[str]) -> None:
        """Ask for the adapters in turn, and now and then for the base model."""
        self._address = address
        self._shape = shape
        self._ids = itertools.cycle([*adapter_ids, None])
        self._lengths = itertools.cycle(STREAM_TOKENS)
        self._max_calls: int | None = None
        self.outcome = Outcome()

    def stop(self, num_calls: int = 0) -> None:
        """Start no further calls once so many more have ended; those that run may end."""
        self._max_calls = self.outcome.num_calls + num_calls

    async def run(self) -> Outcome:
        """Send calls until stopped, and return how they ended."""
        async with (
            AsyncClient(self._address, timeout_seconds=TIMEOUT_SECONDS) as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._shape.num_streams):
                group.create_task(self._repeat(self._stream, client))
            for _ in range(self._shape.num_unary):
                group.create_task(self._repeat(self._unary, client))
        return self.outcome

    async def _repeat(self, call: Call, client: AsyncClient) -> None:
        while self._max_calls is None or self.outcome.num_calls < self._max_calls:
            try:
                await call(client)
            except ClientError as error:
                self.outcome.failures[f"{error.code.name}: {error}"] += 1
            self.outcome.note_end()
            await asyncio.sleep(self._shape.pause_seconds)

    async def _stream(self, client: AsyncClient) -> None:
        num_tokens, is_finished = 0, False
        max_tokens = next(self._lengths)
        wanted = request(next(self._ids), max_tokens)
        async with aclosing(client.generate(wanted)) as events:
            async for event in events:
                num_tokens += len(event.token_ids) if isinstance(event, Chunk) else 0
                is_finished |= isinstance(event, Finished)
        if is_finished and num_tokens == max_tokens:
            self.outcome.num_streams += 1
        else:
            self.outcome.failures[f"{num_tokens} of {max_tokens} tokens came"] += 1

    async def _unary(self, client: AsyncClient) -> None:
        await client.generate_once(request(next(self._ids), UNARY_TOKENS))
        self.outcome.num_unary += 1

"""One request whose reply is followed while it is generated."""

import asyncio
import time

from lokr_serve.client import AsyncClient
from lokr_serve.types import (
    AdapterWeight,
    Chunk,
    Finished,
    GenerationRequest,
    SamplingParams,
    Started,
    TextPrompt,
)

PROMPT = "The value of an expression"
MAX_TOKENS = 160
NUM_TEXTS = 5  # drawn for each request: of one alone, nothing can be claimed
SAMPLING = SamplingParams(
    max_tokens=MAX_TOKENS,
    min_tokens=MAX_TOKENS,
    n=NUM_TEXTS,
    temperature=0.5,
    top_p=0.95,
    seed=7,
)
FLOWING_TOKENS = 8  # after which a stream counts as flowing


class Stream:
    """What is known so far of one request and its reply."""

    def __init__(self, label: str, adapters: dict[str, float]) -> None:
        """Make a stream that asks for a mix of adapters; an empty mix is the base model."""
        self.label = label
        self.texts = [""] * NUM_TEXTS
        self.num_tokens = 0
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.ended_at = 0.0  # on time.monotonic's clock
        self.is_flowing = asyncio.Event()
        self._request = GenerationRequest(
            prompt=TextPrompt(text=PROMPT),
            adapters=tuple(
                AdapterWeight(adapter_id=name, weight=weight) for name, weight in adapters.items()
            ),
            sampling=SAMPLING,
        )

    async def run(self, client: AsyncClient) -> None:
        """Send the request and follow its reply to the end."""
        try:
            async for event in client.generate(self._request):
                self._take(event)
        finally:
            self.ended_at = time.monotonic()
            self.is_flowing.set()  # or whoever waits for a failed stream would wait for ever

    @property
    def versions(self) -> dict[str, str]:
        """The version of each adapter that answered."""
        adapters = self.started.adapters if self.started else ()
        return {adapter.adapter_id: adapter.version for adapter in adapters}

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, by the time since the first."""
        if self.finished is None:
            return 0.0
        timing = self.finished.timing
        seconds = timing.total_seconds - timing.first_token_seconds
        return (self.num_tokens - 1) / seconds if seconds > 0 else 0.0

    def _take(self, event: Started | Chunk | Finished) -> None:
        match event:
            case Started():
                self.started = event
            case Chunk():
                self.texts[event.index] += event.text
                self.num_tokens += len(event.token_ids)
                if self.num_tokens >= FLOWING_TOKENS:
                    self.is_flowing.set()
            case Finished():
                self.finished = event

"""Generation: one request on its way through the engine, and the events that come back."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from lokr_core import AdapterMix, Apply, LokrError
from lokr_serve.types import Chunk, Finished, GenerationEvent, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """A request that was checked, encoded and given its adapters."""

    request_id: str
    mix: AdapterMix
    apply: Apply
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    accepted_at: float  # time.monotonic()
    salt: str = ""


class Mailbox:
    """Events from the engine's thread for one reader on an event loop.

    A reader that is slow gets the chunks that waited for it as one, so what waits is bounded by
    what the request may generate.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._events: list[GenerationEvent] = []
        self._error: LokrError | None = None
        self._ready = asyncio.Event()
        self._closed = asyncio.Event()

    def put(self, events: Iterable[GenerationEvent]) -> None:
        """Add events; called on the loop."""
        self._events.extend(events)
        self._ready.set()

    def fail(self, error: LokrError) -> None:
        """End the stream with an error, after the events that are there; called on the loop."""
        self._error = error
        self._ready.set()

    async def take(self) -> list[GenerationEvent]:
        """Return the events that are there, waiting for the first.

        Raises:
            LokrError: The engine ended the request.
        """
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        if not events and self._error is not None:
            raise self._error
        if self._error is not None:
            self._ready.set()
        return coalesce(events)

    def close(self) -> None:
        """Note that the engine has dropped the request; called on the loop."""
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until the engine has dropped the request; a cancellation takes effect after it."""
        cancelled: asyncio.CancelledError | None = None
        while not self._closed.is_set():
            try:
                await self._closed.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


def coalesce(events: Iterable[GenerationEvent]) -> list[GenerationEvent]:
    """Join the chunks of each sequence that come before its end, keeping the order of firsts."""
    joined: list[GenerationEvent] = []
    places: dict[int, int] = {}
    for event in events:
        place = places.get(event.index)
        if isinstance(event, Finished) or place is None:
            if isinstance(event, Chunk):
                places[event.index] = len(joined)
            joined.append(event)
            continue
        first = joined[place]
        assert isinstance(first, Chunk)
        joined[place] = Chunk(
            index=first.index,
            text=first.text + event.text,
            token_ids=first.token_ids + event.token_ids,
            logprobs=first.logprobs + event.logprobs,
        )
    return joined

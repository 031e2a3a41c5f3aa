"""Generation: one request on its way through the engine, and the events that come back."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lokr_core import AdapterMix, Apply
from lokr_serve import mailbox
from lokr_serve.types import Chunk, Finished, GenerationEvent, Priority, SamplingParams


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
    client: str = ""  # whose share of the engine it counts against; empty is nobody in particular
    priority: Priority = Priority.NORMAL
    deadline: float = math.inf  # of time.monotonic(); one that still waits then never starts


class Mailbox(mailbox.Mailbox[GenerationEvent]):
    """Events from the engine's thread.

    A reader that is slow gets the chunks that waited for it as one, so what waits is bounded by
    what the request may generate.
    """

    async def take(self) -> list[GenerationEvent]:
        """Return the events that are there, joined, waiting for the first."""
        return coalesce(await super().take())


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

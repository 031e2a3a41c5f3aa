"""Generation: one request on its way through the engine, and the events that come back."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

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
    """Join the chunks of each sequence that come before its end, keeping the order of firsts.

    It takes time by the number of events, as it runs on the event loop.
    """
    order: list[list[Chunk] | Finished] = []
    runs: dict[int, list[Chunk]] = {}
    for event in events:
        if isinstance(event, Finished):
            order.append(event)
        elif event.index in runs:
            runs[event.index].append(event)
        else:
            runs[event.index] = [event]
            order.append(runs[event.index])
    return [part if isinstance(part, Finished) else _joined(part) for part in order]


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return consecutive chunks of one sequence as one."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        index=chunks[0].index,
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(chain.from_iterable(chunk.token_ids for chunk in chunks)),
        logprobs=tuple(chain.from_iterable(chunk.logprobs for chunk in chunks)),
    )

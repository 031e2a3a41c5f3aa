"""Where a request's time went, noted in its call's record from what its engine says at the end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from lokr_serve.calls import Attribute, CallRecord, Phase, call_record
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.text import Generation
from lokr_serve.types import (
    Chunk,
    Finished,
    GeneratedImage,
    GenerationEvent,
    ImageEvent,
    ImageFinished,
)


class _Timeline:
    """The phases of one request from the time when it goes to the engine."""

    def __init__(self, *, accepted_at: float, num_ends: int) -> None:
        self.record: CallRecord = call_record()
        self.encoded_seconds = 0.0  # when the image before was encoded
        self._accepted_at = accepted_at
        self._sent_at = time.monotonic()
        self._num_ends = num_ends
        self._num_left = num_ends

    def count(self, name: str, number: int) -> None:
        """Add to one of the call's counts."""
        self.record.counts[name] = self.record.counts.get(name, 0) + number

    def end(self, queue_seconds: float) -> bool:
        """Note that one sequence or image has ended; whether it was the first."""
        self._num_left -= 1
        is_first = self._num_left == self._num_ends - 1
        if is_first:
            self._add("queue", self._sent_at, self._accepted_at + queue_seconds, {})
        return is_first

    def phase(self, name: str, began: float, ended: float, **attributes: Attribute) -> None:
        """Note a phase; times are in seconds since the request was accepted."""
        self._add(name, self._accepted_at + began, self._accepted_at + ended, attributes)

    def fail(self, error: BaseException) -> None:
        """Note an error; of what has not ended, the engine does not say where its time went."""
        if self._num_left:
            self._add("generate", self._sent_at, time.monotonic(), {}).error = type(error).__name__

    def index(self, index: int, name: str) -> dict[str, Attribute]:
        """Return the attribute that tells one of several apart."""
        return {name: index} if self._num_ends > 1 else {}

    def _add(
        self, name: str, began_at: float, ended_at: float, attributes: dict[str, Attribute]
    ) -> Phase:
        phase = Phase(name=name, began_at=began_at, ended_at=ended_at, attributes=attributes)
        self.record.phases.append(phase)
        return phase


@contextmanager
def _until_end(timeline: _Timeline) -> Iterator[None]:
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        timeline.fail(error)
        raise


@asynccontextmanager
async def text_timeline(generation: Generation) -> AsyncIterator[Callable[[GenerationEvent], None]]:
    """Hold while the engine generates; give what is to be told each event."""
    timeline = _Timeline(accepted_at=generation.accepted_at, num_ends=generation.sampling.n)
    timeline.count("prompt_tokens", len(generation.prompt_ids))

    def see(event: GenerationEvent) -> None:
        match event:
            case Chunk():
                timeline.count("completion_tokens", len(event.token_ids))
            case Finished():
                _see_sequence(timeline, event)

    with _until_end(timeline):
        yield see


def _see_sequence(timeline: _Timeline, event: Finished) -> None:
    timing, usage = event.timing, event.usage
    which = timeline.index(event.index, "sequence")
    timeline.end(timing.queue_seconds)
    timeline.count("cached_prompt_tokens", usage.cached_prompt_tokens)
    timeline.phase("prefill", timing.queue_seconds, timing.first_token_seconds, **which)
    timeline.phase(
        "decode",
        timing.first_token_seconds,
        timing.total_seconds,
        completion_tokens=usage.completion_tokens,
        finish_reason=event.reason.value,
        **which,
    )


@asynccontextmanager
async def image_timeline(
    generation: ImageGeneration,
) -> AsyncIterator[Callable[[ImageEvent], None]]:
    """Hold while the engine makes images; give what is to be told each event."""
    plan = generation.plan
    timeline = _Timeline(accepted_at=generation.accepted_at, num_ends=len(plan.seeds))

    def see(event: ImageEvent) -> None:
        match event:
            case GeneratedImage():
                timeline.count("images", 1)
            case ImageFinished():
                _see_image(timeline, event)

    with _until_end(timeline):
        yield see


def _see_image(timeline: _Timeline, event: ImageFinished) -> None:
    timing = event.timing
    assert timing.denoised_seconds is not None, "the engine says it"
    assert timing.decoded_seconds is not None, "the engine says it"
    timeline.count("denoising_steps", event.usage.num_steps)
    if timeline.end(timing.queue_seconds):
        timeline.phase("denoise", timing.queue_seconds, timing.denoised_seconds)
        timeline.phase("decode", timing.denoised_seconds, timing.decoded_seconds)
        timeline.encoded_seconds = timing.decoded_seconds
    which = timeline.index(event.index, "image")
    timeline.phase("encode", timeline.encoded_seconds, timing.total_seconds, **which)
    timeline.encoded_seconds = timing.total_seconds

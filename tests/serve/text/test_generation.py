"""A mailbox brings the engine's events to one reader, whole and in order, however slow it is."""

import asyncio
import time

import pytest

from lokr_serve.errors import EngineStoppedError
from lokr_serve.text.generation import Mailbox, coalesce
from lokr_serve.types import (
    Chunk,
    Finished,
    FinishReason,
    GenerationEvent,
    Timing,
    TokenLogprob,
    Usage,
)


def chunk(index: int, text: str, token_id: int) -> Chunk:
    """Return a piece of one token."""
    logprob = TokenLogprob(token_id=token_id, logprob=-1.0)
    return Chunk(index=index, text=text, token_ids=(token_id,), logprobs=(logprob,))


def finished(index: int) -> Finished:
    """Return an end."""
    return Finished(
        index=index,
        reason=FinishReason.EOS,
        stop=None,
        usage=Usage(prompt_tokens=1, cached_prompt_tokens=0, completion_tokens=1),
        timing=Timing(queue_seconds=0.0, first_token_seconds=0.0, total_seconds=0.0),
    )


def mailbox() -> Mailbox:
    """Return a mailbox of the running loop."""
    return Mailbox(asyncio.get_running_loop())


async def test_a_slow_reader_gets_what_waited_as_one_chunk() -> None:
    """What waits is bounded by what was generated, not by the number of steps."""
    box = mailbox()
    box.put([chunk(0, "a", 5)])
    box.put([chunk(0, "b", 6), chunk(0, "c", 7)])

    (joined,) = await box.take()

    assert isinstance(joined, Chunk)
    assert (joined.text, joined.token_ids) == ("abc", (5, 6, 7))
    assert [logprob.token_id for logprob in joined.logprobs] == [5, 6, 7]


async def test_a_fast_reader_gets_each_chunk_as_it_comes() -> None:
    """Streaming must not wait for more than there is."""
    box = mailbox()
    box.put([chunk(0, "a", 5)])
    first = await box.take()
    reader = asyncio.create_task(box.take())
    await asyncio.sleep(0)  # lets the reader begin to wait
    assert not reader.done()
    box.put([chunk(0, "b", 6)])

    assert [first, await reader] == [[chunk(0, "a", 5)], [chunk(0, "b", 6)]]


def test_sequences_are_joined_apart_and_each_ends_after_its_chunks() -> None:
    """With n > 1 the chunks of the sequences interleave; none may slip past its own end."""
    events: list[GenerationEvent] = [
        chunk(0, "a", 1),
        chunk(1, "x", 2),
        finished(1),
        chunk(0, "b", 3),
        finished(0),
    ]

    joined = coalesce(events)

    assert [(event.index, type(event)) for event in joined] == [
        (0, Chunk),
        (1, Chunk),
        (1, Finished),
        (0, Finished),
    ]
    first = joined[0]
    assert isinstance(first, Chunk)
    assert first.text == "ab"


def test_joining_takes_time_by_the_number_of_chunks() -> None:
    """A reader that comes back after minutes must not hold up every other stream."""

    def seconds(num_chunks: int) -> float:
        chunks = [chunk(0, " word", token_id) for token_id in range(num_chunks)]
        began = time.thread_time()
        coalesce(chunks)
        return time.thread_time() - began

    few, many = (min(seconds(number) for _ in range(3)) for number in (5_000, 40_000))

    assert many < 24 * few  # of 8 times as many; were each added to those before, of 64


async def test_an_error_comes_after_the_events_that_were_there() -> None:
    """What was generated before a fault is not lost, and the fault is not swallowed."""
    box = mailbox()
    box.put([chunk(0, "a", 5)])
    box.fail(EngineStoppedError("gone"))

    events = await box.take()

    assert events == [chunk(0, "a", 5)]
    with pytest.raises(EngineStoppedError, match="gone"):
        await box.take()

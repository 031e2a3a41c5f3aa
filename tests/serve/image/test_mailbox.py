"""The mailbox: what a slow reader loses, and what it never does."""

import asyncio

import pytest

from lokr_serve.errors import EngineStoppedError, GenerationFailedError
from lokr_serve.image.mailbox import Mailbox
from lokr_serve.types import GeneratedImage, ImageFormat, ImagePreview, ImageProgress


def progress(step: int) -> ImageProgress:
    """Return a step's progress."""
    return ImageProgress(step=step, num_steps=9)


def preview(index: int, step: int) -> ImagePreview:
    """Return an image's preview."""
    return ImagePreview(index=index, step=step, width=1, height=1, data=b"")


def image(index: int) -> GeneratedImage:
    """Return a finished image."""
    return GeneratedImage(
        index=index, seed=0, format=ImageFormat.RAW, width=1, height=1, data=b"rgb"
    )


async def test_a_slow_reader_gets_the_last_progress_and_preview_and_every_image() -> None:
    """So what waits for it is bounded, and nothing that it asked for is lost."""
    mailbox = Mailbox(asyncio.get_running_loop())
    for step in (1, 2):
        mailbox.post(progress(step))
        mailbox.post(preview(0, step))
        mailbox.post(preview(step, 1))
    for event in (image(0), image(1), progress(3)):
        mailbox.post(event)

    await asyncio.sleep(0)  # the loop runs what was posted
    events = await mailbox.take()

    assert events == [preview(1, 1), preview(0, 2), preview(2, 1), image(0), image(1), progress(3)]


async def test_events_are_waited_for_from_any_thread() -> None:
    """A request's thread posts, and the reader wakes."""
    mailbox = Mailbox(asyncio.get_running_loop())
    reader = asyncio.create_task(mailbox.take())
    await asyncio.to_thread(mailbox.post, progress(1))

    assert await reader == [progress(1)]


async def test_an_error_comes_after_the_events_before_it() -> None:
    """The first of several errors is told, and told again to who asks again."""
    mailbox = Mailbox(asyncio.get_running_loop())
    mailbox.post(image(0))
    mailbox.fail(GenerationFailedError("r"))
    mailbox.fail(EngineStoppedError("later"))
    await asyncio.sleep(0)

    assert await mailbox.take() == [image(0)]
    for _ in range(2):
        with pytest.raises(GenerationFailedError):
            await mailbox.take()


async def test_waiting_for_the_close_outlasts_a_cancellation() -> None:
    """What the request holds may be given back only once nothing works for it."""
    mailbox = Mailbox(asyncio.get_running_loop())
    waiter = asyncio.create_task(mailbox.wait_closed())
    await asyncio.sleep(0)
    waiter.cancel()
    _, pending = await asyncio.wait({waiter}, timeout=0.01)
    mailbox.close()
    await asyncio.wait({waiter})

    assert pending == {waiter}
    assert waiter.cancelled()
    await mailbox.wait_closed()  # at once, as it is closed


def test_posting_to_a_loop_that_has_ended_does_nothing() -> None:
    """A request's thread may outlive the server's loop."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()

    mailbox.post(progress(1))
    mailbox.close()

"""Mailbox: the events of one request for images, on their way to its reader."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from lokr_core import LokrError
from lokr_serve.types import ImageEvent, ImagePreview, ImageProgress


class Mailbox:
    """Events from a request's thread for one reader on an event loop.

    A reader that is slow gets the last progress and the last preview of each image that waited
    for it; images and their ends wait for as long as they must.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: list[ImageEvent] = []
        self._error: LokrError | None = None
        self._ready = asyncio.Event()
        self._closed = asyncio.Event()

    def post(self, event: ImageEvent) -> None:
        """Add an event; called on any thread."""
        self._post(partial(self._put, event))

    def fail(self, error: LokrError) -> None:
        """End the stream with an error, after the events that are there; called on any thread."""
        self._post(partial(self._fail, error))

    def close(self) -> None:
        """Note that nothing works for the request any more; called on any thread."""
        self._post(self._closed.set)

    async def take(self) -> list[ImageEvent]:
        """Return the events that are there, waiting for the first.

        Raises:
            LokrError: The engine ended the request.
        """
        await self._ready.wait()
        self._ready.clear()
        events, self._events = self._events, []
        if self._error is not None:
            self._ready.set()
            if not events:
                raise self._error
        return events

    async def wait_closed(self) -> None:
        """Wait until nothing works for the request; a cancellation takes effect after it."""
        cancelled: asyncio.CancelledError | None = None
        while not self._closed.is_set():
            try:
                await self._closed.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _put(self, event: ImageEvent) -> None:
        self._events = [waiting for waiting in self._events if not _replaces(event, waiting)]
        self._events.append(event)
        self._ready.set()

    def _fail(self, error: LokrError) -> None:
        if self._error is None:
            self._error = error
        self._ready.set()

    def _post(self, call: Callable[[], None]) -> None:
        """Run a call on the reader's loop; nobody reads any more where that is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)


def _replaces(event: ImageEvent, waiting: ImageEvent) -> bool:
    """Whether a reader that has not had the one that waits needs only the new one."""
    if isinstance(event, ImageProgress):
        return isinstance(waiting, ImageProgress)
    if isinstance(event, ImagePreview):
        return isinstance(waiting, ImagePreview) and waiting.index == event.index
    return False

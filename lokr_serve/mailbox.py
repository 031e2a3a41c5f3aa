"""Mailbox: the events of one request, on their way from an engine to a reader on an event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from lokr_core import LokrError

E = TypeVar("E")


class Mailbox(Generic[E]):
    """Events for one reader; each engine says which of those that wait a slow reader gets."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_admitted: Callable[[], None] = lambda: None
    ) -> None:
        """Bind the reader's loop, and what is called there once the request waits no more."""
        self.loop = loop
        self._on_admitted = on_admitted
        self._events: list[E] = []
        self._error: LokrError | None = None
        self._ready = asyncio.Event()
        self._closed = asyncio.Event()

    def admit(self) -> None:
        """Tell that the engine has begun with the request; on any thread, before any event."""
        post(self.loop, self._on_admitted)

    def put(self, events: Iterable[E]) -> None:
        """Add events; called on the loop."""
        self._events.extend(events)
        self._ready.set()

    def fail(self, error: LokrError) -> None:
        """End the stream with an error, after the events that are there; called on the loop.

        The first error stays.
        """
        if self._error is None:
            self._error = error
        self._ready.set()

    def close(self) -> None:
        """Note that nothing works for the request any more; called on the loop."""
        self._closed.set()

    async def take(self) -> list[E]:
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


def post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Run a call on a loop, from any thread; nobody reads any more where that is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)

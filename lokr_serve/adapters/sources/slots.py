"""Slots: a bounded number of threads for work that may never come back."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

Value = TypeVar("Value")


class Slots:
    """Runs each function in a thread of its own that does not keep the process from ending.

    Whoever waits may give up; the thread keeps its slot until it is done.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = asyncio.Semaphore(num_slots)
        self._num_running = 0
        self._when_idle: Callable[[], object] | None = None

    async def run(self, function: Callable[[], Value], *, undo: Callable[[Value], object]) -> Value:
        """Run a blocking function once there is a slot, and return its result.

        Args:
            function: What to run.
            undo: Is called with the result if nobody waits for it any more.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        outcome: Future[Value] = Future()
        outcome.set_running_or_notify_cancel()

        def work() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised again where the outcome is awaited
                outcome.set_exception(error)
            with suppress(RuntimeError):  # the event loop has ended before
                loop.call_soon_threadsafe(self._end)

        self._num_running += 1
        try:
            threading.Thread(target=work, name="adapter-fetcher", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._end()
            raise
        try:
            return await asyncio.wrap_future(outcome)
        except asyncio.CancelledError:
            outcome.add_done_callback(lambda done: _undo(done, undo))
            raise

    def close(self, when_idle: Callable[[], object]) -> None:
        """Call a function once no thread is left: now, later, or not while the event loop runs."""
        self._when_idle = when_idle
        self._note_idle()

    def _end(self) -> None:
        self._free.release()
        self._num_running -= 1
        self._note_idle()

    def _note_idle(self) -> None:
        if self._when_idle is not None and not self._num_running:
            self._when_idle()


def _undo(done: Future[Value], undo: Callable[[Value], object]) -> None:
    if done.exception() is None:
        undo(done.result())

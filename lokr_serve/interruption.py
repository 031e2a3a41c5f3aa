"""Ending a block of code with an error when something happens elsewhere."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from lokr_core import LokrError

T = TypeVar("T")


class Interruption(Generic[T]):
    """Ends the block that it opens with an error once a future has resolved.

    Like ``asyncio.timeout``, it cancels the task and turns that cancellation into the error, so
    a stream pays nothing for it per event. A cancellation by anyone else stays one.
    """

    def __init__(self, future: asyncio.Future[T], error: Callable[[T], LokrError]) -> None:
        self._future = future
        self._error = error
        self._task: asyncio.Task[object] | None = None
        self._num_cancels_before = 0
        self._has_fired = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._num_cancels_before = self._task.cancelling()
        self._future.add_done_callback(self._interrupt)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._future.remove_done_callback(self._interrupt)
        task, self._task = self._task, None  # a callback that is under way already finds no task
        if not self._has_fired:
            return
        assert task is not None
        is_ours = task.uncancel() <= self._num_cancels_before
        if is_ours and kind is asyncio.CancelledError:
            raise self._error(self._future.result()) from error

    def _interrupt(self, future: asyncio.Future[T]) -> None:
        if self._task is not None and not future.cancelled():
            self._has_fired = True
            self._task.cancel()

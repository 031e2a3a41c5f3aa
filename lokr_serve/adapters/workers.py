"""Workers: the threads in which adapters are read and merged, off the event loop and the engine."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from lokr_serve.errors import ShuttingDownError
from lokr_serve.one_core import start_on_one_core

Key = TypeVar("Key")
Value = TypeVar("Value")


class Workers:
    """A bounded pool of threads, each of which keeps torch on one core."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="adapter-loader")
        self._is_closed = False
        start_on_one_core(num_threads, self._executor.submit)

    def submit(self, function: Callable[[], Value]) -> asyncio.Future[Value]:
        """Run a blocking function in a thread.

        Raises:
            ShuttingDownError: The pool is closed.
        """
        if self._is_closed:
            raise ShuttingDownError("the server is shutting down")
        return asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def close(self) -> None:
        """Cancel what has not begun, and wait for what has."""
        self._is_closed = True
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)


async def join(call: asyncio.Future[Value]) -> Value:
    """Wait for a call that others may wait for too; being cancelled leaves it running for them.

    Raises:
        ShuttingDownError: The pool was closed before the call ended.
    """
    await asyncio.wait({call})
    if call.cancelled():
        raise ShuttingDownError("the server is shutting down")
    return call.result()


async def whole(
    call: asyncio.Future[Value], *, undo: Callable[[Value], object] = lambda _: None
) -> Value:
    """Wait for a call to its end, also if being cancelled meanwhile, which is raised after it.

    For a call that uses what is given back once it is over.

    Args:
        call: What to wait for.
        undo: Is called with the result if being cancelled keeps it from whoever waits.

    Raises:
        ShuttingDownError: The pool was closed before the call began.
    """
    cancellation = None
    while not call.done():
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError as error:
            cancellation = error
    if call.cancelled():
        raise ShuttingDownError("the server is shutting down")
    failure = call.exception()
    if cancellation is not None:
        if failure is None:
            undo(call.result())
        raise cancellation
    if failure is not None:
        raise failure
    return call.result()


class SharedCalls(Generic[Key, Value]):
    """Calls in the workers by key; while one runs, whoever asks for its key shares it."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._calls: dict[Key, asyncio.Future[Value]] = {}

    def start(self, key: Key, function: Callable[[], Value]) -> asyncio.Future[Value]:
        """Return the running call of this key, or start one; wait for it with :func:`join`."""
        return self.share(key, lambda: self._workers.submit(function))

    def share(self, key: Key, begin: Callable[[], asyncio.Future[Value]]) -> asyncio.Future[Value]:
        """Return the running call of this key, or begin one that is more than one function."""
        if key not in self._calls:
            call = begin()
            self._calls[key] = call
            call.add_done_callback(lambda done: self._end(key, done))
        return self._calls[key]

    def _end(self, key: Key, call: asyncio.Future[Value]) -> None:
        del self._calls[key]
        if not call.cancelled():
            call.exception()  # marks it as seen, in case all who waited are gone

    def __contains__(self, key: Key) -> bool:
        """Whether a call of this key is running."""
        return key in self._calls

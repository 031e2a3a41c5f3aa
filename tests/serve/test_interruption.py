"""Interruptions: errors from elsewhere, told apart from cancellation."""

import asyncio

import pytest

from lokr_serve.errors import AdapterUnloadedError, ShuttingDownError
from lokr_serve.interruption import Interruption


def new_future() -> asyncio.Future[str]:
    """Return a future of the running loop."""
    return asyncio.get_running_loop().create_future()


async def test_a_resolved_future_ends_the_block_with_its_error() -> None:
    """A request whose adapter was unloaded by force must end at once, and say so."""
    ended = new_future()
    asyncio.get_running_loop().call_soon(ended.set_result, "poet")

    with pytest.raises(AdapterUnloadedError, match="poet"):
        async with Interruption(ended, AdapterUnloadedError):
            await asyncio.Event().wait()


async def test_a_future_that_had_resolved_before_ends_the_block() -> None:
    """There must be no gap between looking and waiting."""
    ended = new_future()
    ended.set_result("poet")

    with pytest.raises(AdapterUnloadedError):
        async with Interruption(ended, AdapterUnloadedError):
            await asyncio.Event().wait()


async def test_a_block_that_ends_first_is_left_alone() -> None:
    """A future that resolves later must not touch a task that has moved on."""
    ended = new_future()
    async with Interruption(ended, AdapterUnloadedError):
        pass
    ended.set_result("poet")
    await asyncio.sleep(0)

    task = asyncio.current_task()

    assert task is not None
    assert task.cancelling() == 0


async def test_the_outer_of_two_that_fire_at_once_names_the_cause() -> None:
    """Shutdown and unload may come together; the call still ends in one error."""
    unloaded, stopped = new_future(), new_future()

    def both() -> None:
        unloaded.set_result("poet")
        stopped.set_result("the server is shutting down")

    asyncio.get_running_loop().call_soon(both)

    with pytest.raises(ShuttingDownError):
        async with (
            Interruption(stopped, ShuttingDownError),
            Interruption(unloaded, AdapterUnloadedError),
        ):
            await asyncio.Event().wait()


async def test_a_cancellation_by_someone_else_stays_one() -> None:
    """A client that went away must not be logged as a fault of the server."""
    ended = new_future()
    entered = asyncio.Event()

    async def work() -> None:
        async with Interruption(ended, AdapterUnloadedError):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    ended.set_result("poet")

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_future_does_not_interrupt() -> None:
    """A lease that ends in the normal way may drop its future."""
    ended = new_future()

    async with Interruption(ended, AdapterUnloadedError):
        ended.cancel()
        await asyncio.sleep(0)

    assert ended.cancelled()


async def test_an_error_of_the_block_wins() -> None:
    """The first thing that went wrong is what the caller learns."""
    ended = new_future()

    async def fail_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("first") from None

    asyncio.get_running_loop().call_soon(ended.set_result, "poet")

    with pytest.raises(ValueError, match="first"):
        async with Interruption(ended, AdapterUnloadedError):
            await fail_when_cancelled()


async def test_a_future_that_resolves_as_the_block_ends_is_too_late() -> None:
    """A stream that has just finished must not end in a cancellation that nobody asked for."""
    ended = new_future()
    async with Interruption(ended, AdapterUnloadedError):
        ended.set_result("poet")  # its callbacks run in the next turn of the loop
    await asyncio.sleep(0)

    task = asyncio.current_task()

    assert task is not None
    assert task.cancelling() == 0

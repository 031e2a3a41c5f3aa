"""The threads that read and merge: bounded, shared by key, and off the engine's cores."""

import asyncio
import threading

import pytest
import torch

from lokr_serve.adapters.workers import SharedCalls, Workers, join, whole
from lokr_serve.errors import ShuttingDownError


async def test_workers_use_one_core_and_leave_other_threads_theirs() -> None:
    """A load must not take the engine's cores, nor change how many the engine may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    workers = Workers(2)
    found: list[int] = []

    in_worker = await join(workers.submit(torch.get_num_threads))
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    found.append(torch.get_num_threads())
    torch.set_num_threads(before)
    await workers.close()

    assert in_worker == 1
    assert found == [2, 2]


async def test_equal_keys_share_one_call() -> None:
    """Two requests for one adapter load it once."""
    workers = Workers(2)
    calls: SharedCalls[str, int] = SharedCalls(workers)
    release, num_started = threading.Event(), 0

    def work() -> int:
        nonlocal num_started
        num_started += 1
        release.wait(10)
        return num_started

    waiters = [asyncio.create_task(join(calls.start("a", work))) for _ in range(3)]
    await asyncio.sleep(0)
    is_running = "a" in calls
    release.set()
    results = await asyncio.gather(*waiters)
    await workers.close()

    assert is_running
    assert "a" not in calls
    assert results == [1, 1, 1]


async def test_a_cancelled_waiter_leaves_the_call_to_the_others() -> None:
    """A client that hangs up must not fail the load that others wait for."""
    workers = Workers(1)
    calls: SharedCalls[str, int] = SharedCalls(workers)
    release = threading.Event()

    def work() -> int:
        release.wait(10)
        return 7

    first, second = (asyncio.create_task(join(calls.start("a", work))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    release.set()

    assert await second == 7
    await workers.close()


async def test_what_a_cancelled_waiter_would_have_got_is_undone() -> None:
    """A thread may take hold of something for whoever waits; nobody else would let go of it."""
    workers, undone = Workers(1), list[int]()
    release = threading.Event()

    def work() -> int:
        release.wait(10)
        return 7

    waiter = asyncio.create_task(whole(workers.submit(work), undo=undone.append))
    await asyncio.sleep(0)
    waiter.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    kept = await whole(workers.submit(lambda: 8), undo=undone.append)
    await workers.close()

    assert (undone, kept) == ([7], 8)


async def test_a_failure_reaches_every_waiter_and_is_forgotten() -> None:
    """A failed call must not answer the next caller, nor complain if nobody waited for it."""
    workers = Workers(1)
    calls: SharedCalls[str, int] = SharedCalls(workers)

    def fail() -> int:
        raise ValueError("broken")

    unwatched = calls.start("unwatched", fail)
    outcomes = await asyncio.gather(
        *(join(calls.start("a", fail)) for _ in range(2)), return_exceptions=True
    )
    again = await join(calls.start("a", lambda: 7))
    await asyncio.wait({unwatched})
    await workers.close()

    assert [str(outcome) for outcome in outcomes] == ["broken", "broken"]
    assert again == 7


async def test_closing_ends_what_waits_and_refuses_what_comes() -> None:
    """A stop of the server must answer every request that waits for a load."""
    workers = Workers(1)
    started, release = threading.Event(), threading.Event()

    def work() -> bool:
        started.set()
        return release.wait(10)

    running = workers.submit(work)
    queued = asyncio.create_task(join(workers.submit(lambda: 7)))
    await asyncio.to_thread(started.wait, 10)

    closing = asyncio.create_task(workers.close())

    with pytest.raises(ShuttingDownError):
        await queued
    with pytest.raises(ShuttingDownError):
        workers.submit(lambda: 7)
    release.set()
    await closing
    assert running.result()

"""Threads for work that may never come back."""

import asyncio
import threading

import pytest

from lokr_serve.adapters.sources.slots import Slots


async def test_work_runs_beside_other_work_up_to_the_number_of_slots() -> None:
    """More would only share what the network gives."""
    slots, running, go_on = Slots(2), threading.Semaphore(0), threading.Event()

    def work() -> int:
        running.release()
        go_on.wait()
        return 7

    tasks = [asyncio.create_task(slots.run(work, undo=id)) for _ in range(3)]
    await asyncio.to_thread(running.acquire)
    await asyncio.to_thread(running.acquire)

    assert not running.acquire(blocking=False)
    go_on.set()
    assert await asyncio.gather(*tasks) == [7, 7, 7]


async def test_what_nobody_waits_for_any_more_is_undone() -> None:
    """A copy that was held for someone who has given up must not be held for ever."""
    slots, started, go_on = Slots(1), threading.Event(), threading.Event()
    undone: list[int] = []

    def work() -> int:
        started.set()
        go_on.wait()
        return 7

    task = asyncio.create_task(slots.run(work, undo=undone.append))
    await asyncio.to_thread(started.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()

    assert await slots.run(lambda: 8, undo=undone.append) == 8  # waits for the slot
    assert undone == [7]


async def test_a_failure_is_the_caller_s_and_frees_the_slot() -> None:
    """A slot that is lost with each failure would end in none."""
    slots = Slots(1)

    def fail() -> None:
        raise ValueError("as told")

    for _ in range(2):
        with pytest.raises(ValueError, match="as told"):
            await slots.run(fail, undo=id)


async def test_a_thread_that_does_not_start_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is short of threads for a moment must not be short of slots for good."""
    slots = Slots(1)

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="start new thread"):
            await slots.run(lambda: 1, undo=print)

    assert await slots.run(lambda: 2, undo=print) == 2


async def test_what_threads_use_is_given_back_after_the_last_of_them() -> None:
    """A folder that is left to another server must have nobody who still writes to it."""
    slots, started, go_on = Slots(2), threading.Semaphore(0), threading.Event()
    given_back = asyncio.Event()

    def work() -> None:
        started.release()
        go_on.wait()

    tasks = [asyncio.create_task(slots.run(work, undo=id)) for _ in range(2)]
    for _ in tasks:
        await asyncio.to_thread(started.acquire)
        tasks[0].cancel()
    slots.close(given_back.set)

    assert not given_back.is_set()
    go_on.set()
    async with asyncio.timeout(10):
        await given_back.wait()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nothing_is_waited_for_where_no_thread_runs() -> None:
    """The usual case, also after threads that could not be started."""
    slots, given_back = Slots(1), asyncio.Event()
    await slots.run(lambda: None, undo=id)
    await asyncio.sleep(0)  # the slot is given back after the outcome
    slots.close(given_back.set)

    assert given_back.is_set()


def test_a_thread_may_outlast_the_event_loop() -> None:
    """A driver that never comes back must not keep the server from ending."""
    go_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait()
        ended.set()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Slots(1).run(work, undo=id)

    asyncio.run(give_up())
    go_on.set()

    assert ended.wait(10)

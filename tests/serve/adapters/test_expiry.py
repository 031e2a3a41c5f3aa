"""One timer for many deadlines."""

import asyncio

from lokr_serve.adapters.expiry import ExpiryTimer


def now() -> float:
    """Return the time of the event loop."""
    return asyncio.get_running_loop().time()


async def test_ids_fall_due_in_the_order_of_their_deadlines() -> None:
    """One timer must serve all adapters, whatever the order in which they were set."""
    due: asyncio.Queue[str] = asyncio.Queue()
    timer = ExpiryTimer(due.put_nowait)

    timer.set("late", now() + 0.02)
    timer.set("early", now() + 0.01)

    assert [await due.get(), await due.get()] == ["early", "late"]


async def test_the_last_deadline_set_counts() -> None:
    """An adapter that was used again must not expire at its old time."""
    due: asyncio.Queue[str] = asyncio.Queue()
    timer = ExpiryTimer(due.put_nowait)
    timer.set("moved", now() + 0.01)
    timer.set("moved", now() + 0.03)
    timer.set("dropped", now() + 0.01)
    timer.discard("dropped")
    timer.discard("unknown")

    timer.set("between", now() + 0.02)

    assert [await due.get(), await due.get()] == ["between", "moved"]
    assert due.empty()


async def test_deadlines_that_are_set_again_and_again_take_no_memory() -> None:
    """Every use of an adapter sets its deadline."""
    timer = ExpiryTimer(lambda adapter_id: None)

    for _ in range(1000):
        timer.set("busy", now() + 100)

    assert timer.num_pending < 50
    timer.close()


async def test_nothing_falls_due_after_closing() -> None:
    """A closed registry must not act any more."""
    due: asyncio.Queue[str] = asyncio.Queue()
    timer = ExpiryTimer(due.put_nowait)
    timer.set("a", now() + 0.01)

    timer.close()
    await asyncio.sleep(0.03)

    assert due.empty()

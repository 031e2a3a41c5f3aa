"""Who holds an id, and how it is drained."""

import asyncio

import pytest

from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.errors import AdapterBusyError


def new_lease() -> asyncio.Future[str]:
    """Return the future by which a lease is told to end."""
    return asyncio.get_running_loop().create_future()


async def test_an_id_that_nothing_holds_is_drained_at_once() -> None:
    """An idle adapter must not cost the drain time."""
    async with asyncio.timeout(1):
        await LeaseBook().drain("a", drain_seconds=100, force=False)


async def test_a_drain_ends_with_the_last_lease() -> None:
    """The unload must not wait longer than the requests do."""
    book = LeaseBook()
    first, second = new_lease(), new_lease()
    book.add("a", first)
    book.add("a", second)
    count = book.count("a")

    drain = asyncio.create_task(book.drain("a", drain_seconds=100, force=False))
    await asyncio.sleep(0)
    book.remove("a", first)
    await asyncio.sleep(0)
    is_early = drain.done()
    book.remove("a", second)
    await drain

    assert count == 2
    assert not is_early
    assert book.count("a") == 0
    assert not second.done()


async def test_a_drain_without_force_gives_up_at_its_time() -> None:
    """The operator learns how many requests are left, and none of them is ended."""
    book = LeaseBook()
    lease = new_lease()
    book.add("a", lease)

    with pytest.raises(AdapterBusyError) as caught:
        await book.drain("a", drain_seconds=0, force=False)

    assert caught.value.in_flight == 1
    assert not lease.done()


async def test_force_ends_the_leases_and_waits_for_them() -> None:
    """Memory is free only when the last request has let go, and none may be told twice."""
    book = LeaseBook()
    lease, ended_before = new_lease(), new_lease()
    ended_before.set_result("b")
    book.add("a", lease)
    book.add("a", ended_before)

    drain = asyncio.create_task(book.drain("a", drain_seconds=0.01, force=True))
    name = await lease
    is_early = drain.done()
    book.remove("a", lease)
    book.remove("a", ended_before)
    await drain

    assert name == "a"
    assert not is_early
    assert ended_before.result() == "b"

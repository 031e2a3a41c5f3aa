"""Turns: who runs next, and for how long it is worth to wait."""

from collections.abc import Hashable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.image.turns import Turns

TURNS = Turns(max_rows=4, gather_seconds=1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiter:
    """A call that waits."""

    name: str = ""
    group: Hashable = "g"
    is_alone: bool = False
    num_rows: int = 1
    owner: Hashable = "mix"
    arrived_at: float = 10.0


def chosen(
    *waiting: Waiter, is_complete: bool = False, free_at: float = 0.0, now: float = 10.5
) -> str:
    """Return the names of the calls to run now, joined."""
    batch = TURNS.next_batch(waiting, is_complete=is_complete, free_at=free_at, now=now)
    return "".join(call.name for call in batch)


def test_nothing_runs_while_a_busy_request_may_still_join() -> None:
    """A forward of two rows costs little more than one of one."""
    waiting = (Waiter(name="a"), Waiter(name="b"))

    assert chosen(*waiting) == ""
    assert chosen(*waiting, is_complete=True) == "ab"
    assert chosen() == ""


def test_the_oldest_call_waits_no_longer_than_the_window() -> None:
    """A request that is slow on the host must not hold up the others."""
    assert chosen(Waiter(name="a"), now=10.9) == ""
    assert chosen(Waiter(name="a"), now=11.0) == "a"
    assert TURNS.due_at([Waiter()], free_at=0.0) == 11.0


def test_the_window_counts_from_when_the_device_was_free() -> None:
    """Who missed a step waits for those in it to come back, or would be a step off for ever."""
    assert chosen(Waiter(name="a"), free_at=12.0, now=12.5) == ""
    assert chosen(Waiter(name="a"), free_at=12.0, now=13.0) == "a"


def test_a_full_group_runs_at_once() -> None:
    """Nobody else would fit, so there is nothing to wait for."""
    others = [Waiter(name=name, num_rows=2) for name in "bc"]

    assert chosen(Waiter(name="a", group="other"), *others) == "bc"


def test_a_call_that_joins_nobody_runs_at_once() -> None:
    """It would wait for what cannot come."""
    assert chosen(Waiter(name="a"), Waiter(name="b", group="vae", is_alone=True)) == "b"


def test_a_late_call_goes_before_groups_that_are_full() -> None:
    """Or a group that is always full would keep it waiting for ever."""
    full = [Waiter(name=name, num_rows=2, arrived_at=10.5) for name in "bc"]

    assert chosen(Waiter(name="a", group="other"), *full, now=11.2, free_at=11.1) == "a"


def test_the_group_of_the_oldest_call_goes_first() -> None:
    """No request is passed over for ever."""
    waiting = (Waiter(name="a"), Waiter(name="b", group="other"), Waiter(name="c"))

    assert chosen(*waiting, is_complete=True) == "ac"


def test_rows_beyond_the_limit_are_shared_by_mix() -> None:
    """A tenant with many requests leaves room for one with a few, the oldest going first."""
    many = [Waiter(name=name, owner="many") for name in "abcdef"]
    few = [Waiter(name=name, owner="few") for name in "yz"]

    assert sorted(chosen(*many, *few)) == ["a", "b", "y", "z"]


def test_a_call_that_does_not_fit_beside_the_others_waits_for_its_turn() -> None:
    """A smaller one takes the room; the large one is the oldest next time, and goes first."""
    large = Waiter(name="b", num_rows=3)

    assert chosen(Waiter(name="a", num_rows=2), large, Waiter(name="c")) == "ac"
    assert chosen(large, Waiter(name="d", num_rows=2), Waiter(name="e")) == "be"


def test_a_call_larger_than_the_limit_runs_by_itself() -> None:
    """It was admitted, so it is to end; no forward could be smaller."""
    assert chosen(Waiter(name="a", num_rows=9), Waiter(name="b")) == "a"


CALLS = st.builds(
    Waiter,
    group=st.sampled_from("gh"),
    is_alone=st.just(False),
    num_rows=st.integers(1, 4),
    owner=st.sampled_from("xyz"),
)


@given(calls=st.lists(CALLS, min_size=1, max_size=12))
def test_every_call_has_its_turn_in_batches_that_fit(calls: list[Waiter]) -> None:
    """Whatever waits, each batch is of one group, within the rows, and nobody is left over."""
    waiting = list(calls)
    num_batches = 0
    while waiting:
        batch = TURNS.next_batch(waiting, is_complete=True, free_at=0.0, now=10.0)
        num_batches += 1
        assert batch
        assert len({call.group for call in batch}) == 1
        assert sum(call.num_rows for call in batch) <= TURNS.max_rows
        waiting = [call for call in waiting if call not in batch]

    assert num_batches <= len(calls)

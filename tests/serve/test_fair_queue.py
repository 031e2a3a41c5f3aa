"""The waiting line."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lokr_serve.errors import QueueFullError
from lokr_serve.fair_queue import FairQueue

Item = tuple[str, int]  # key, number
KEYS = st.sampled_from("ABCD")


def fill(queue: FairQueue[Item], key: str, costs: list[int]) -> None:
    """Push items of one key with the given costs."""
    for number, cost in enumerate(costs):
        queue.push((key, number), key=key, cost=cost)


def test_one_key_is_served_in_the_order_of_arrival() -> None:
    """Within an adapter nobody overtakes, whatever the costs."""
    queue: FairQueue[Item] = FairQueue(8)
    fill(queue, "A", [5, 1, 9, 2])

    assert [queue.pop()[1] for _ in range(4)] == [0, 1, 2, 3]


def test_keys_of_equal_cost_take_turns() -> None:
    """A busy adapter with a long line cannot starve another that has just come."""
    queue: FairQueue[Item] = FairQueue(100)
    fill(queue, "A", [3] * 50)
    fill(queue, "B", [3] * 2)
    fill(queue, "C", [3] * 2)

    assert [queue.pop()[0] for _ in range(6)] == list("ABCABC")


def test_dear_items_wait_longer_than_cheap_ones() -> None:
    """The share is of cost: ten short requests weigh as much as one of ten times the tokens."""
    queue: FairQueue[Item] = FairQueue(100)
    fill(queue, "dear", [100] * 5)
    fill(queue, "cheap", [10] * 50)

    served = Counter(queue.pop()[0] for _ in range(33))

    assert served == {"dear": 3, "cheap": 30}


@settings(deadline=None)
@given(
    lines=st.dictionaries(KEYS, st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=2)
)
def test_keys_that_wait_together_are_served_alike(lines: dict[str, list[int]]) -> None:
    """The law of the queue: accounts differ by at most the dearest item of each, at any time."""
    queue: FairQueue[Item] = FairQueue(1000)
    for key, costs in lines.items():
        fill(queue, key, costs)
    served = dict.fromkeys(lines, 0)
    taken = dict.fromkeys(lines, 0)

    while all(taken[key] < len(lines[key]) for key in lines):  # every key still waits
        key, number = queue.pop()
        served[key] += lines[key][number]
        taken[key] += 1

        for one in lines:
            for other in lines:
                assert served[one] - served[other] <= max(lines[one]) + max(lines[other])


@settings(deadline=None)
@given(
    backlog=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    num_served=st.integers(0, 30),
    others=st.integers(1, 4),
    cost=st.integers(1, 50),
)
def test_wait_of_a_newcomer_is_bounded_whatever_the_backlog(
    backlog: list[int], num_served: int, others: int, cost: int
) -> None:
    """Each key that waits is served once at most before it, however long their lines are."""
    queue: FairQueue[Item] = FairQueue(1000)
    for other in range(others):
        fill(queue, f"busy {other}", backlog)
    for _ in range(min(num_served, others * len(backlog) - 1)):
        queue.pop()

    queue.push(("new", 0), key="new", cost=cost)
    served_before = [queue.pop()[0] for _ in range(len(queue))].index("new")

    assert served_before <= others


def test_key_gains_nothing_by_going_idle() -> None:
    """Leaving and coming back must not wipe out what a key was served a moment ago."""
    queue: FairQueue[Item] = FairQueue(100)
    fill(queue, "steady", [10] * 20)
    queue.push(("gone", 0), key="gone", cost=50)
    queue.push(("gone", 1), key="gone", cost=50)
    first = [queue.pop()[0] for _ in range(2)]
    assert queue.remove(("gone", 1))

    queue.push(("gone", 2), key="gone", cost=50)
    then = [queue.pop()[0] for _ in range(5)]

    assert sorted(first) == ["gone", "steady"]
    assert then == ["steady"] * 4 + ["gone"]


def test_idle_key_is_forgotten_once_the_others_are_level_with_it() -> None:
    """Adapters come and go by the thousand; a queue that is never empty must not keep them all."""
    queue: FairQueue[Item] = FairQueue(100)
    for number in range(50):
        queue.push(("steady", number), key="steady", cost=1)
        queue.push((f"passing {number}", 0), key=f"passing {number}", cost=1)
    while len(queue) > 10:
        queue.pop()

    assert len(queue._lanes) == 1


def test_full_queue_refuses_and_keeps_what_it_has() -> None:
    """The bound is what turns overload into a quick answer."""
    queue: FairQueue[Item] = FairQueue(2)
    fill(queue, "A", [1, 1])

    with pytest.raises(QueueFullError, match="2 requests wait already"):
        queue.push(("B", 0), key="B", cost=1)

    assert len(queue) == 2
    assert [queue.pop(), queue.pop()] == [("A", 0), ("A", 1)]


def test_removed_item_is_not_served() -> None:
    """A cancelled request must not be computed."""
    queue: FairQueue[Item] = FairQueue(8)
    fill(queue, "A", [1, 1, 1])

    assert queue.remove(("A", 1))
    assert not queue.remove(("A", 1))
    assert [queue.pop(), queue.pop()] == [("A", 0), ("A", 2)]
    assert not queue.remove(("A", 2))


def test_empty_queue_has_nothing_to_pop() -> None:
    """Asking is a mistake of the caller, who can see the length."""
    queue: FairQueue[Item] = FairQueue(8)
    fill(queue, "A", [1])
    queue.remove(("A", 0))

    with pytest.raises(IndexError):
        queue.pop()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_item_leaves_once_and_in_line(seed: int) -> None:
    """Over any history of pushes, pops and removals nothing is lost, doubled or overtaken."""
    chance = random.Random(seed)
    queue: FairQueue[Item] = FairQueue(10)
    lines: dict[str, list[Item]] = {key: [] for key in "ABC"}
    for number in range(120):
        num_waiting = sum(map(len, lines.values()))
        key = chance.choice("ABC")
        what = chance.random()
        if what < 0.5 and num_waiting < 10:
            queue.push((key, number), key=key, cost=chance.randint(1, 9))
            lines[key].append((key, number))
        elif what < 0.9 and num_waiting:
            item = queue.pop()
            assert lines[item[0]].pop(0) == item
        elif lines[key]:
            item = lines[key].pop(chance.randrange(len(lines[key])))
            assert queue.remove(item)

        assert len(queue) == sum(map(len, lines.values()))

"""The waiting line."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.fair_queue import FairQueue, Share
from lokr_serve.types import Priority

Item = tuple[str, int]  # name of the line, number
NAMES = st.sampled_from("ABCD")
COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=30)
LINES = st.dictionaries(NAMES, COSTS, min_size=2)


def share(client: str = "", mix: str = "", priority: Priority = Priority.NORMAL) -> Share:
    """Return a share, of nobody in particular unless it is said."""
    return Share(priority=priority, client=client, mix=mix)


def by_client(name: str) -> Share:
    """Return the share of a client; all want the same mix."""
    return share(client=name)


def by_mix(name: str) -> Share:
    """Return the share of a mix; all are wanted by the same client."""
    return share(mix=name)


LEVELS = pytest.mark.parametrize("share_of", [by_client, by_mix])


class Line:
    """A queue, and what was put into it."""

    def __init__(self) -> None:
        self.queue: FairQueue[Item] = FairQueue()
        self.costs: dict[Item, int] = {}

    def fill(self, name: str, costs: list[int], to: Share) -> None:
        """Push items of one name with the given costs."""
        for number, cost in enumerate(costs):
            self.costs[name, number] = cost
            self.queue.push((name, number), share=to, cost=cost)

    def pop(self, count: int) -> list[str]:
        """Serve some items, and return the names of their lines."""
        return [self.queue.pop()[0] for _ in range(count)]


@LEVELS
def test_keys_of_equal_cost_take_turns(share_of: Callable[[str], Share]) -> None:
    """A busy client, or mix, with a long line cannot starve another that has just come."""
    line = Line()
    for name, count in (("A", 50), ("B", 2), ("C", 2)):
        line.fill(name, [3] * count, share_of(name))

    assert line.pop(6) == list("ABCABC")


def test_one_line_is_served_in_the_order_of_arrival() -> None:
    """Within a client and a mix nobody overtakes, whatever the costs."""
    line = Line()
    line.fill("A", [5, 1, 9, 2], share())

    assert [line.queue.pop()[1] for _ in range(4)] == [0, 1, 2, 3]


def test_dear_items_wait_longer_than_cheap_ones() -> None:
    """The share is of cost: ten short requests weigh as much as one of ten times the tokens."""
    line = Line()
    line.fill("dear", [100] * 5, by_client("dear"))
    line.fill("cheap", [10] * 50, by_client("cheap"))

    assert Counter(line.pop(33)) == {"dear": 3, "cheap": 30}


def test_a_client_gains_nothing_by_naming_many_mixes() -> None:
    """The first share is the client's, else whoever names a thousand adapters has all of it."""
    line = Line()
    for number in range(20):
        line.queue.push(("many", number), share=share("greedy", f"mix {number}"), cost=10)
    line.fill("one", [10] * 20, share("modest", "mix 0"))

    assert Counter(line.pop(10)) == {"many": 5, "one": 5}


def test_a_higher_class_goes_first_however_long_the_others_have_waited() -> None:
    """Someone who looks at a screen does not wait for a night's batch."""
    line = Line()
    for name, priority in (("low", 1), ("normal", 2), ("high", 3)):
        line.fill(name, [1, 1], share(priority=Priority(priority)))
    before = line.queue.peek()
    line.queue.push(("late", 0), share=share("another", "mix", Priority.HIGH), cost=99)

    assert before == ("high", 0)
    assert line.pop(7) == ["high", "late", "high", "normal", "normal", "low", "low"]


@LEVELS
@given(lines=LINES)
def test_keys_that_wait_together_are_served_alike(
    share_of: Callable[[str], Share], lines: dict[str, list[int]]
) -> None:
    """The law of the queue: accounts differ by at most the dearest item of each, at any time."""
    line = Line()
    for name, costs in lines.items():
        line.fill(name, costs, share_of(name))
    served = dict.fromkeys(lines, 0)
    left = {name: len(costs) for name, costs in lines.items()}

    while all(left.values()):  # every key still waits
        name, number = line.queue.pop()
        served[name] += lines[name][number]
        left[name] -= 1

        for one, other in product(lines, lines):
            assert served[one] - served[other] <= max(lines[one]) + max(lines[other])


@given(clients=st.dictionaries(NAMES, LINES, min_size=2, max_size=3))
def test_both_laws_hold_at_once(clients: dict[str, dict[str, list[int]]]) -> None:
    """Clients are served alike, and the mixes of each client, whatever the others have."""
    line = Line()
    for client, lines in clients.items():
        for mix, costs in lines.items():
            line.fill(client + mix, costs, share(client, mix))
    dearest = {client: max(map(max, lines.values())) for client, lines in clients.items()}
    served: Counter[str] = Counter()
    left = Counter(
        {c + m: len(costs) for c, lines in clients.items() for m, costs in lines.items()}
    )

    while all(any(left[c + m] for m in lines) for c, lines in clients.items()):
        item = line.queue.pop()
        client = item[0][0]
        is_whole = all(left[client + one] for one in clients[client])
        left[item[0]] -= 1
        served[client] += line.costs[item]
        served[item[0]] += line.costs[item]

        for one, other in product(clients, clients):
            assert served[one] - served[other] <= dearest[one] + dearest[other]
        for one, other in product(clients[client], clients[client]) if is_whole else ():
            bound = max(clients[client][one]) + max(clients[client][other])
            assert served[client + one] - served[client + other] <= bound


@given(
    backlog=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    num_served=st.integers(0, 30),
    others=st.integers(1, 4),
    cost=st.integers(1, 50),
)
def test_wait_of_a_newcomer_is_bounded_whatever_the_backlog(
    backlog: list[int], num_served: int, others: int, cost: int
) -> None:
    """Each client that waits is served once at most before it, however long their lines are."""
    line = Line()
    for other in range(others):
        line.fill(f"busy {other}", backlog, by_client(f"busy {other}"))
    line.pop(min(num_served, others * len(backlog) - 1))

    line.fill("new", [cost], by_client("new"))

    assert line.pop(len(line.queue)).index("new") <= others


@LEVELS
def test_key_gains_nothing_by_going_idle(share_of: Callable[[str], Share]) -> None:
    """Leaving and coming back must not wipe out what a key was served a moment ago."""
    line = Line()
    line.fill("steady", [10] * 20, share_of("steady"))
    line.fill("gone", [50, 50], share_of("gone"))
    first = line.pop(2)
    assert line.queue.remove(("gone", 1))

    line.queue.push(("gone", 2), share=share_of("gone"), cost=50)

    assert sorted(first) == ["gone", "steady"]
    assert line.pop(5) == ["steady"] * 4 + ["gone"]


def test_idle_clients_are_forgotten_once_the_others_are_level_with_them() -> None:
    """Clients come and go by the thousand; a queue that is never empty must not keep them all."""
    line = Line()
    line.fill("steady", [1] * 50, by_client("steady"))
    for number in range(50):
        line.fill(f"passing {number}", [1], by_client(f"passing {number}"))

    line.pop(90)

    assert line.queue.num_accounts == 1


def test_removed_item_is_not_served() -> None:
    """A cancelled request must not be computed."""
    line = Line()
    line.fill("A", [1, 1, 1], share("client", "mix"))

    assert line.queue.remove(("A", 1))
    assert not line.queue.remove(("A", 1))
    assert [line.queue.pop(), line.queue.pop()] == [("A", 0), ("A", 2)]
    assert not line.queue.remove(("A", 2))


def test_empty_queue_has_nothing_to_pop() -> None:
    """Asking is a mistake of the caller, who can see the length."""
    line = Line()
    line.fill("A", [1], share())
    line.queue.remove(("A", 0))

    with pytest.raises(IndexError):
        line.queue.pop()


@given(seed=st.integers(0, 2**32))
def test_every_item_leaves_once_and_in_line(seed: int) -> None:
    """Over any history of pushes, pops and removals nothing is lost, doubled or overtaken."""
    chance = random.Random(seed)
    queue: FairQueue[Item] = FairQueue()
    shares = {
        f"{client}{mix}{priority.value}": share(client, mix, priority)
        for client, mix, priority in product("AB", "XY", Priority)
    }
    lines: dict[str, list[Item]] = {name: [] for name in shares}
    for number in range(120):
        name = chance.choice(list(shares))
        what = chance.random()
        if what < 0.5:
            queue.push((name, number), share=shares[name], cost=chance.randint(1, 9))
            lines[name].append((name, number))
        elif what < 0.9 and any(lines.values()):
            item = queue.pop()
            assert lines[item[0]].pop(0) == item
            assert item[0][2] == max(waiting[2] for waiting in [*filter(lines.get, lines), item[0]])
        elif lines[name]:
            item = lines[name].pop(chance.randrange(len(lines[name])))
            assert queue.remove(item)

        assert len(queue) == sum(map(len, lines.values()))

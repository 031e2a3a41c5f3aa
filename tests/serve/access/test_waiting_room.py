"""The waiting room: who gets a place, and who loses it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lokr_serve.access.waiting_room import Place, WaitingRoom
from lokr_serve.errors import QueueFullError
from lokr_serve.metrics import Metrics
from lokr_serve.types import Priority
from tests.serve.access.clock import Clock

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


class Scene:
    """A room, its metrics, and its clock."""

    def __init__(self, max_waiting: int = 4, max_bytes: int = 1000) -> None:
        self.clock = Clock()
        self.metrics = Metrics(version="test")
        self.room = WaitingRoom(
            max_waiting=max_waiting, max_bytes=max_bytes, metrics=self.metrics, clock=self.clock
        )

    def enter(self, *priorities: Priority, num_bytes: int = 1) -> list[Place]:
        """Have requests come in, one after the other."""
        return [self.room.enter(priority, num_bytes) for priority in priorities]

    def num_shed(self, reason: str) -> float | None:
        """Return how many requests have ended for a reason."""
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value("lokr_serve_requests_shed_total", labels)


async def test_a_full_room_refuses_those_who_are_no_more_urgent() -> None:
    """Without a bound, a burst would fill memory and every request would wait for ever."""
    scene = Scene(max_waiting=2)
    places = scene.enter(LOW, NORMAL)
    places[0].leave()
    scene.enter(NORMAL)

    for priority in (LOW, NORMAL):
        with pytest.raises(
            QueueFullError, match=r"^the queue is full, with 2 waiting; retry after"
        ):
            scene.enter(priority)
    assert len(scene.room) == 2
    assert scene.num_shed("queue_full") == 2


async def test_the_less_urgent_may_take_every_place_until_it_is_wanted() -> None:
    """Places that stand empty help nobody; those who took them make way."""
    scene = Scene(max_waiting=3)
    lows = scene.enter(LOW, LOW, LOW)
    (high,) = scene.enter(HIGH)

    assert [low.shed.done() for low in lows] == [False, False, True]  # the youngest goes
    assert high.is_taken
    assert not lows[2].is_taken
    assert len(scene.room) == 3
    assert scene.num_shed("shed") == 1


async def test_the_lowest_class_makes_way_first() -> None:
    """A normal request goes only when there is no low one."""
    scene = Scene(max_waiting=3)
    low, first, second = scene.enter(LOW, NORMAL, NORMAL)
    scene.enter(HIGH)
    shed_first = [place.shed.done() for place in (low, first, second)]
    scene.enter(HIGH)
    shed_then = [place.shed.done() for place in (low, first, second)]

    assert shed_first == [True, False, False]
    assert shed_then == [True, False, True]


async def test_who_must_go_is_told_when_to_come_again() -> None:
    """As whoever is refused is."""
    scene = Scene(max_waiting=1)
    (low,) = scene.enter(LOW)
    scene.enter(NORMAL)

    assert 1.0 <= low.shed.result() <= 1.25


async def test_a_place_is_free_again_once_its_request_runs_or_ends() -> None:
    """Running requests are bounded elsewhere; a place must be given back once, not twice."""
    scene = Scene(max_waiting=1)
    (first,) = scene.enter(NORMAL)
    first.leave()
    scene.enter(NORMAL)
    first.leave()

    with pytest.raises(QueueFullError):
        scene.enter(NORMAL)


async def test_bytes_are_bounded_beside_places() -> None:
    """A few requests with large images fill memory long before the places are taken."""
    scene = Scene(max_waiting=100, max_bytes=1000)
    scene.enter(NORMAL, NORMAL, num_bytes=400)

    with pytest.raises(QueueFullError, match="with 800 bytes held"):
        scene.enter(NORMAL, num_bytes=300)
    scene.enter(NORMAL, num_bytes=200)
    assert scene.room.num_bytes == 1000


async def test_as_many_are_shed_as_bytes_are_wanted() -> None:
    """One large urgent request may take the bytes of several."""
    scene = Scene(max_bytes=1000)
    places = scene.enter(NORMAL, LOW, LOW, num_bytes=300)
    scene.enter(HIGH, num_bytes=500)

    assert [place.shed.done() for place in places] == [False, True, True]
    assert scene.room.num_bytes == 800


async def test_nobody_is_shed_for_a_request_that_does_not_fit_even_then() -> None:
    """The change is whole or not at all."""
    scene = Scene(max_bytes=1000)
    places = scene.enter(NORMAL, LOW, num_bytes=400)

    with pytest.raises(QueueFullError):
        scene.enter(HIGH, NORMAL, num_bytes=1001)
    with pytest.raises(QueueFullError):
        scene.enter(NORMAL, num_bytes=700)
    assert not any(place.shed.done() for place in places)


async def test_a_request_that_is_alone_always_has_room() -> None:
    """One that is larger than the bound would else be told to come again for ever."""
    scene = Scene(max_bytes=10)
    (place,) = scene.enter(LOW, num_bytes=50)
    place.grow(500)

    assert scene.room.num_bytes == 550
    with pytest.raises(QueueFullError):
        scene.enter(LOW, num_bytes=1)


async def test_what_a_request_comes_to_hold_counts_too() -> None:
    """A small file may be a large image; one that finds no room for it stays as it was."""
    scene = Scene(max_bytes=1000)
    low, normal, other = scene.enter(LOW, NORMAL, NORMAL, num_bytes=100)
    normal.grow(750)
    with pytest.raises(QueueFullError, match="bytes held"):
        other.grow(200)

    assert low.shed.done()
    assert not normal.shed.done()
    assert (other.num_bytes, scene.room.num_bytes) == (100, 950)


async def test_a_request_that_has_left_grows_at_nobodys_cost() -> None:
    """What runs is bounded elsewhere."""
    scene = Scene(max_bytes=10)
    first, second = scene.enter(NORMAL, NORMAL, num_bytes=5)
    first.leave()
    first.grow(100)

    assert scene.room.num_bytes == 5
    assert second.is_taken


async def test_the_time_to_come_again_follows_from_the_queue() -> None:
    """Ten who wait, and two who leave each second: five seconds."""
    scene = Scene(max_waiting=10)
    for _ in range(50):
        (place,) = scene.enter(NORMAL)
        scene.clock.wait(0.5)
        place.leave()
    scene.enter(*[NORMAL] * 10)

    with pytest.raises(QueueFullError) as caught:
        scene.enter(NORMAL)
    assert 4.5 <= caught.value.retry_seconds <= 6.5


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
async def test_bounds_hold_over_any_history_and_nothing_leaks(seed: int) -> None:
    """However requests come, grow and go: within bounds, shed only for the more urgent."""
    chance = random.Random(seed)
    scene = Scene(max_waiting=5, max_bytes=100)
    here: list[Place] = []
    for _ in range(80):
        before = list(here)
        try:
            if chance.random() < 0.6 or not here:
                priority = chance.choice(list(Priority))
                here += scene.enter(priority, num_bytes=chance.randint(0, 60))
            elif chance.random() < 0.5:
                chance.choice(here).grow(chance.randint(0, 40))
            else:
                here.pop(chance.randrange(len(here))).leave()
        except QueueFullError:
            assert here == before
        here = [place for place in here if not place.shed.done()]

        assert len(scene.room) == len(here) <= 5
        assert scene.room.num_bytes == sum(place.num_bytes for place in here)
        assert scene.room.num_bytes <= 100 or len(here) == 1
    for place in here:
        place.leave()

    assert (len(scene.room), scene.room.num_bytes) == (0, 0)

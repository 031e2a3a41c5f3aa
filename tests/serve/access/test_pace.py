"""How long it will take, from how fast it went lately."""

from lokr_serve.access.pace import JITTER, MAX_SECONDS, MIN_SECONDS, Pace
from tests.serve.access.clock import Clock


def go(pace: Pace, clock: Clock, *, seconds: float, num_events: int = 100) -> None:
    """Have something happen every so many seconds."""
    for _ in range(num_events):
        pace.note()
        clock.wait(seconds)


def test_a_steady_pace_is_found() -> None:
    """Ten places ahead at two a second take five seconds; whoever comes sooner comes in vain."""
    clock = Clock()
    pace = Pace(clock)
    go(pace, clock, seconds=0.5)

    assert 5.0 <= pace.seconds(10) <= 5.0 * (1 + JITTER) + 0.1


def test_only_the_last_events_count() -> None:
    """An hour of slow requests says nothing about the fast ones of now."""
    clock = Clock()
    pace = Pace(clock)
    go(pace, clock, seconds=50.0)
    go(pace, clock, seconds=0.1)

    assert pace.seconds(20) < 3.0


def test_what_has_stopped_takes_longer_and_longer() -> None:
    """A stuck engine must not call everybody back every second."""
    clock = Clock()
    pace = Pace(clock)
    go(pace, clock, seconds=0.1)
    before = pace.seconds(10)
    clock.wait(30)

    assert pace.seconds(10) > 5 * before


def test_estimates_stay_within_bounds() -> None:
    """Nobody is told to come back at once, or next week."""
    clock = Clock()
    fast, slow = Pace(clock), Pace(clock)
    go(fast, clock, seconds=0.0)
    soon = fast.seconds(1000)
    go(slow, clock, seconds=100.0)
    late = slow.seconds(1000)

    assert MIN_SECONDS <= soon <= MIN_SECONDS * (1 + JITTER)
    assert MAX_SECONDS <= late <= MAX_SECONDS * (1 + JITTER)


def test_those_who_were_refused_together_come_back_apart() -> None:
    """One second for everybody would bring the whole crowd back at once."""
    pace = Pace(Clock())
    times = {pace.seconds(1) for _ in range(50)}

    assert len(times) == 50
    assert all(1.0 <= seconds <= 1.0 + JITTER for seconds in times)

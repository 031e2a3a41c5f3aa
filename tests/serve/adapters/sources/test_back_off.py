"""When a source that failed is tried again."""

import pytest

from lokr_serve.adapters.sources.back_off import BackOff
from lokr_serve.errors import SourceUnavailableError


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_waits_double_up_to_a_limit_and_end_with_success() -> None:
    """A store that is down for long is asked ever more seldom, but is asked."""
    clock = Clock()
    back_off = BackOff(first_seconds=1, max_seconds=5, clock=clock)
    waits = []
    for _ in range(5):
        waits.append(back_off.note("s", "is gone").retry_seconds)
        clock.now += waits[-1]
        back_off.require("s")

    assert waits == [1, 2, 4, 5, 5]
    back_off.clear("s")
    assert back_off.note("s", "is gone").retry_seconds == 1


def test_while_it_waits_it_says_why_and_how_long() -> None:
    """Whoever asks meanwhile learns what the one who tried has learnt."""
    clock = Clock()
    back_off = BackOff(first_seconds=10, max_seconds=50, clock=clock)
    back_off.note("s", "is gone")
    clock.now += 4

    with pytest.raises(SourceUnavailableError, match="'s' is gone; try again after 6 s") as caught:
        back_off.require("s")

    assert caught.value.retry_seconds == 6
    back_off.require("other")


def test_it_remembers_a_bounded_number_of_sources() -> None:
    """Callers make up sources as they like."""
    back_off = BackOff(first_seconds=1, max_seconds=5, max_sources=3)
    for index in range(10):
        back_off.note(f"s{index}", "is gone")

    assert len(back_off) == 3
    back_off.require("s0")
    with pytest.raises(SourceUnavailableError):
        back_off.require("s9")

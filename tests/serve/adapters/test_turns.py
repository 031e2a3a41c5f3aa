"""How loads share the interpreter with the engine."""

import threading

import pytest

from lokr_serve.adapters import turns
from lokr_serve.adapters.turns import LoadTurns


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every pause that is made, on a clock that moves by one millisecond at each look."""
    found: list[float] = []
    clock = iter(number / 1000 for number in range(1, 1000))
    monkeypatch.setattr(turns, "monotonic", lambda: next(clock))
    monkeypatch.setattr(turns, "sleep", found.append)
    return found


def test_loads_leave_the_engine_most_of_the_time_while_it_serves(pauses: list[float]) -> None:
    """A burst of loads must not double the time of every step."""
    loads = LoadTurns(share=0.25, is_serving=lambda: True)

    for _ in range(3):
        with loads.turn():
            pass

    assert pauses == pytest.approx([0.002, 0.002])  # of 3 ms, one passed before the next load


def test_nothing_waits_while_nobody_is_served(pauses: list[float]) -> None:
    """Loads before the first request, or at night, run one after the other."""
    loads = LoadTurns(share=0.25, is_serving=lambda: False)

    for _ in range(3):
        with loads.turn():
            pass

    assert pauses == []


def test_a_long_load_costs_no_long_pause(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a large file is spent on its bytes, which the engine does not feel."""
    monkeypatch.setattr(turns, "MAX_PAUSE_SECONDS", 0.0015)
    loads = LoadTurns(share=0.01, is_serving=lambda: True)

    for _ in range(2):
        with loads.turn():
            pass

    assert pauses == pytest.approx([0.0005])


def test_a_slow_load_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One adapter of gigabytes, or on a slow disk, must not hold up all others."""
    monkeypatch.setattr(turns, "MAX_TURN_SECONDS", 0.01)
    loads = LoadTurns(share=1.0, is_serving=lambda: False)
    is_done = threading.Event()

    def load() -> None:
        with loads.turn():
            is_done.set()

    with loads.turn():
        other = threading.Thread(target=load)
        other.start()
        is_waited_for = not is_done.wait(10)
    other.join()

    assert not is_waited_for

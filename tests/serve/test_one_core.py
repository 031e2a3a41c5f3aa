"""Threads on one core each, beside others that keep theirs."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from lokr_serve.one_core import start_on_one_core


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Torch may use two cores, for the time of a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
def test_started_threads_have_one_core_and_all_others_theirs() -> None:
    """Work beside an engine must not take its cores, nor those of whatever starts after."""
    threads: list[threading.Thread] = []
    inside: list[int] = []
    later: list[int] = []

    def start(enter: Callable[[], None]) -> None:
        def work() -> None:
            enter()
            inside.append(torch.get_num_threads())

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    start_on_one_core(3, start)
    threads.append(threading.Thread(target=lambda: later.append(torch.get_num_threads())))
    threads[-1].start()
    for thread in threads:
        thread.join()

    assert inside == [1, 1, 1]
    assert (later, torch.get_num_threads()) == ([2], 2)

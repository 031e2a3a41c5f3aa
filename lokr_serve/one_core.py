"""Threads that keep torch on one core each, started beside others that have more."""

import threading
from collections.abc import Callable

import torch


def start_on_one_core(num_threads: int, start: Callable[[Callable[[], None]], object]) -> None:
    """Start threads with one core each for torch, and leave all others as they were.

    ``torch.set_num_threads`` acts on the calling thread and on threads that use torch for the first
    time later. So each thread uses torch before it sets its own number, and the old number is set
    again once all have theirs.

    Args:
        num_threads: How many there will be.
        start: Is called as often to start one, with what it must call first.
    """
    num_cores = torch.get_num_threads()
    ready = threading.Barrier(num_threads + 1)

    def enter() -> None:
        torch.get_num_threads()
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(num_threads):
        start(enter)
    ready.wait()
    torch.set_num_threads(num_cores)

"""Workers: the threads that requests run in, and the line before them."""

import threading
import time
from collections.abc import Callable

from lokr_serve.fair_queue import FairQueue
from lokr_serve.image.job import Job
from lokr_serve.metrics import Metrics
from lokr_serve.one_core import start_on_one_core


class Workers:
    """A fixed number of threads, each with one job at a time; the others wait in a fair queue."""

    def __init__(self, *, num_threads: int, run: Callable[[Job], None], metrics: Metrics) -> None:
        self._run = run
        self._metrics = metrics
        self._changed = threading.Condition()
        self._queue: FairQueue[Job] = FairQueue()
        self._num_running = 0
        self._is_closed = False
        self._num_threads = num_threads
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads with one core each for torch, and leave all others as they were."""
        start_on_one_core(self._num_threads, self._start_thread)

    def _start_thread(self, enter: Callable[[], None]) -> None:
        name = f"image-request-{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(enter,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the line."""
        with self._changed:
            self._queue.push(job, share=job.share, cost=job.cost)
            self._show_load()
            self._changed.notify()

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the line; whether it was still there."""
        with self._changed:
            was_waiting = self._queue.remove(job)
            self._show_load()
            return was_waiting

    def close(self) -> list[Job]:
        """Let the threads end with the jobs that they have, and return those that waited."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            left = [self._queue.pop() for _ in range(len(self._queue))]
            self._show_load()
            return left

    def join(self, deadline: float | None) -> bool:
        """Wait until the threads have ended, and say whether they have.

        Args:
            deadline: Of time.monotonic; None waits for ever.
        """
        for thread in self._threads:
            if thread.is_alive():
                thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, enter: Callable[[], None]) -> None:
        enter()
        while self._work_once():
            pass

    def _work_once(self) -> bool:
        """Run the next job, and say whether there was one; nothing of it is kept after."""
        job = self._next()
        if job is None:
            return False
        try:
            self._run(job)
        finally:
            with self._changed:
                self._num_running -= 1
                self._show_load()
                self._changed.notify_all()
        return True

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or self._is_closed)
            if not len(self._queue):
                return None
            self._num_running += 1
            job = self._queue.peek()
            if job.is_late:
                self._queue.remove(job)  # not popped: its client is not charged for it
            else:
                self._queue.pop()
            self._show_load()
            return job

    def _show_load(self) -> None:
        """Show, with the lock held, how many jobs run and wait."""
        self._metrics.requests_running.set(self._num_running)
        self._metrics.requests_waiting.set(len(self._queue))

"""Isolation: after a step has raised, find the rows that cannot run, and spare the others.

The rows of the failed step are suspects. They are run in halves, apart from everything else: a
half that makes a step is cleared, one that fails is halved again, and a row that fails in a test of
its own is the culprit. Everything else waits, and then goes on from what it has.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Isolation(Generic[Row]):
    """Decides which rows run; empty until a step fails."""

    def __init__(self) -> None:
        self._suspects: deque[list[Row]] = deque()
        self._testing: list[Row] = []
        self._waiting: list[Row] = []

    @property
    def is_active(self) -> bool:
        """Whether rows are being tested apart."""
        return bool(self._suspects or self._testing or self._waiting)

    @property
    def testing(self) -> Sequence[Row]:
        """The rows that run now, if a test is on."""
        return self._testing

    def fail(self, scheduled: Sequence[Row], running: Iterable[Row]) -> Row | None:
        """Note that a step failed.

        Args:
            scheduled: The rows of the failed step.
            running: All rows that were in the batch.

        Returns:
            The row that cannot run even alone: the step was a test and had no other. The first
            failure of a row that ran alone may be anything, so that one is tried again.
        """
        others = [row for row in running if row not in scheduled]
        was_test = bool(self._testing)
        self._testing = []
        self._waiting += others
        if len(scheduled) == 1 and was_test:
            return scheduled[0]
        middle = len(scheduled) // 2
        halves = [list(scheduled[:middle]), list(scheduled[middle:])]
        self._suspects.extendleft(half for half in reversed(halves) if half)
        return None

    def clear(self, row: Row) -> None:
        """Note that a row made its step."""
        self.discard(row)
        self._waiting.append(row)

    def discard(self, row: Row) -> None:
        """Forget a row that has ended."""
        for group in (self._testing, self._waiting, *self._suspects):
            if row in group:
                group.remove(row)

    def next_rows(self) -> list[Row]:
        """Return the rows to run next: a group of suspects, or everything that waited."""
        while self._suspects:
            self._testing = self._suspects.popleft()
            if self._testing:
                return list(self._testing)
        rows, self._waiting = self._waiting, []
        return rows

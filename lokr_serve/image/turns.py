"""Turns: which of the calls that wait run next, and how long to wait for more."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """A call that waits for its turn."""

    @property
    def group(self) -> Hashable:
        """What is equal in calls that may join."""

    @property
    def is_alone(self) -> bool:
        """Whether no other call may join."""

    @property
    def num_rows(self) -> int:
        """Rows that it brings."""

    @property
    def owner(self) -> Hashable:
        """Whose share of the rows it counts against."""

    @property
    def arrived_at(self) -> float:
        """When it began to wait."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The order of forwards: full ones at once, and nobody waits long for company.

    Calls of a group run together: when every live request waits, since none can come; when the
    rows are as many as may be; or when the device has stood idle for ``gather_seconds`` since the
    oldest came. Counted from when the device was free, as requests that share a step come back
    from it together, and one that missed it is to find them.
    """

    max_rows: int
    gather_seconds: float

    def next_batch(
        self, waiting: Sequence[W], *, is_complete: bool, free_at: float, now: float
    ) -> list[W]:
        """Return the calls to run now; none if it is worth to wait for more.

        Args:
            waiting: All calls, the oldest first.
            is_complete: Whether no live request is left that could still make a call.
            free_at: When the device became free.
            now: The time.
        """
        if not waiting:
            return []
        groups = self._groups(waiting)
        full = next((group for group in groups if self._is_full(group)), None)
        is_late = waiting[0].arrived_at + self.gather_seconds <= now
        if full is not None and not is_late:
            return self._fitting(full)
        if is_complete or full is not None or self.due_at(waiting, free_at) <= now:
            return self._fitting(groups[0])
        return []

    def due_at(self, waiting: Sequence[W], free_at: float) -> float:
        """Return when the oldest call has waited for others long enough."""
        return max(waiting[0].arrived_at, free_at) + self.gather_seconds

    def _groups(self, waiting: Iterable[W]) -> list[list[W]]:
        """Return the calls by group, the group of the oldest call first."""
        groups: dict[Hashable, list[W]] = {}
        for call in waiting:
            groups.setdefault(call.group, []).append(call)
        return list(groups.values())

    def _is_full(self, group: Sequence[W]) -> bool:
        return group[0].is_alone or sum(call.num_rows for call in group) >= self.max_rows

    def _fitting(self, group: Sequence[W]) -> list[W]:
        """Return as many of a group as fit; the oldest, then of each owner as many rows."""
        taken = [group[0]]
        left = list(group[1:])
        rows: Counter[Hashable] = Counter({group[0].owner: group[0].num_rows})
        while left:
            room = self.max_rows - rows.total()
            fitting = [call for call in left if call.num_rows <= room]
            if not fitting:
                break
            chosen = min(fitting, key=lambda call: rows[call.owner])  # the oldest of equals
            left.remove(chosen)
            taken.append(chosen)
            rows[chosen.owner] += chosen.num_rows
        return taken

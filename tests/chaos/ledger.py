"""Ledger: how every call ended, and what must never have happened."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

MAX_EXAMPLES = 3  # of violations of one kind that are kept in words; the rest is counted


class Ledger:
    """Counts ends by operation and status, and keeps violations."""

    def __init__(self) -> None:
        self._ends: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._violations: defaultdict[str, list[str]] = defaultdict(list)
        self.skipped: list[str] = []

    def count(self, operation: str, status: str) -> None:
        """Note how one call ended."""
        self._ends[operation][status] += 1

    def violate(self, kind: str, what: str) -> None:
        """Note what must not have happened."""
        self._violations[kind].append(what)

    def skip(self, what: str) -> None:
        """Note what this machine could not do."""
        if what not in self.skipped:
            self.skipped.append(what)

    def num_ended(self, operation: str, status: str | None = None) -> int:
        """Return how many calls ended, with one status or with any."""
        ends = self._ends[operation]
        return ends.total() if status is None else ends[status]

    @property
    def num_violations(self) -> int:
        """How often something happened that must not have."""
        return sum(map(len, self._violations.values()))

    @property
    def violations(self) -> Sequence[str]:
        """What happened that must not have, with a few examples of each kind."""
        return [
            f"{kind} ({len(all_)} times): {what}"
            for kind, all_ in self._violations.items()
            for what in all_[:MAX_EXAMPLES]
        ]

    @property
    def ends(self) -> Mapping[str, Mapping[str, int]]:
        """How often each operation ended with each status, the commonest first."""
        return {name: dict(ends.most_common()) for name, ends in sorted(self._ends.items())}

"""Shelf: which versions an id may serve, as far as the loads that were sent tell."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from lokr_serve.types import Started


@dataclass(slots=True, kw_only=True, eq=False)
class Sight:
    """The versions that each id of a request may have served while it was admitted."""

    versions: dict[str, set[str]] = field(default_factory=dict)

    def faults(self, started: Started) -> Iterator[str]:
        """Say which adapters of a reply were none of those."""
        for adapter in started.adapters:
            if adapter.version not in self.versions[adapter.adapter_id]:
                yield f"{adapter.adapter_id} was served in version {adapter.version}, which is old"


class Shelf:
    """Follows what loads, unloads and restarts make of each id."""

    def __init__(self, lasting: Mapping[str, str]) -> None:
        self._lasting = lasting
        self._possible: dict[str, set[str]] = {}
        self._sights: set[Sight] = set()
        self.restart({})

    def restart(self, declared: Mapping[str, str]) -> None:
        """Forget what a process held that is gone; a new one has what files declare."""
        known = {**self._lasting, **declared}
        self._possible = {adapter_id: {version} for adapter_id, version in known.items()}

    def possible(self, adapter_id: str) -> frozenset[str]:
        """Return the versions that an id may have now; none if it was never loaded."""
        return frozenset(self._possible.get(adapter_id, ()))

    def may_become(self, adapter_id: str, version: str) -> None:
        """Note that an id may have a version from now on, since a load was sent."""
        self._possible.setdefault(adapter_id, set()).add(version)
        for sight in self._sights:
            if adapter_id in sight.versions:
                sight.versions[adapter_id].add(version)

    def is_now(self, adapter_id: str, version: str) -> None:
        """Note that an id has this version and no other: a load has answered."""
        self._possible[adapter_id] = {version}

    def is_not(self, adapter_id: str, version: str) -> None:
        """Note that a load was refused, and changed nothing."""
        self._possible[adapter_id].discard(version)

    def is_gone(self, adapter_id: str) -> None:
        """Note that an id is unloaded."""
        self._possible[adapter_id] = set()

    @contextmanager
    def watching(self, ids: Iterable[str]) -> Iterator[Sight]:
        """Collect what some ids may serve while the block runs."""
        sight = Sight(versions={adapter_id: set(self.possible(adapter_id)) for adapter_id in ids})
        self._sights.add(sight)
        try:
            yield sight
        finally:
            self._sights.remove(sight)

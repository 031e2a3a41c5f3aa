"""Declarations: the manifest of a run, which an actor changes while the server follows it."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lokr_serve.types import AdapterState, AdapterStatus
from tests.chaos.cast import ALIASES, DECLARED
from tests.chaos.place import Content, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the manifest says of one adapter."""

    content: Content
    is_pinned: bool
    ttl_seconds: float
    aliases: tuple[str, ...]

    def faults(self, found: AdapterStatus | None) -> Iterator[str]:
        """Say what differs from it in what the server has, if it has the adapter at all."""
        if found is None:
            yield "is not there"
            return
        wanted = [self.content.version, self.content.digest, self.is_pinned, self.ttl_seconds]
        has = [found.version, found.digest, found.pinned, found.ttl_seconds]
        if has != wanted or tuple(found.aliases) != self.aliases or not found.is_declared:
            yield f"is {has} {found.aliases} {found.warnings}, not {wanted} {self.aliases}"
        if found.state not in ((AdapterState.READY,) if self.is_pinned else _AT_REST):
            yield f"is {found.state.value}"


_AT_REST = (AdapterState.READY, AdapterState.REGISTERED)  # an eviction may have come since


class Declarations:
    """Writes the manifest, each time in one step."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.adapters: Mapping[str, Declared] = {}

    def write(self, draws: random.Random) -> None:
        """Declare other contents, pins and times to live."""
        contents = list(self._place.contents.values())
        pinned = draws.choice([None, *DECLARED])
        self.adapters = {
            adapter_id: Declared(
                content=draws.choice(contents),
                is_pinned=adapter_id == pinned,
                ttl_seconds=draws.choice([0.0, 3600.0]),
                aliases=tuple(alias for alias, named in ALIASES.items() if named == adapter_id),
            )
            for adapter_id in DECLARED
        }
        entries = [
            {
                "id": adapter_id,
                "source": declared.content.source,
                "digest": declared.content.digest,
                "pinned": declared.is_pinned,
                "ttl_seconds": declared.ttl_seconds,
                "aliases": declared.aliases,
            }
            for adapter_id, declared in self.adapters.items()
        ]
        path = self._place.manifest
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"adapters": entries}), encoding="utf-8")  # JSON is YAML
        new.replace(path)

    @property
    def versions(self) -> Mapping[str, str]:
        """The version of each declared id."""
        return {i: declared.content.version for i, declared in self.adapters.items()}

    def faults(self, adapters: Sequence[AdapterStatus]) -> Iterator[str]:
        """Say what the server has that is not as declared."""
        found = {adapter.adapter_id: adapter for adapter in adapters}
        for adapter_id, declared in self.adapters.items():
            for fault in declared.faults(found.get(adapter_id)):
                yield f"{adapter_id} {fault}"

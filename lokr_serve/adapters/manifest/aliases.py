"""AliasTable: other names of adapters, which the manifest gives and can give to another adapter."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import AdapterWeight


class AliasTable:
    """Which id each alias stands for now; lives on the event loop.

    No alias stands for what is itself an alias, so that resolving a name twice changes nothing.
    """

    def __init__(self) -> None:
        self._targets: Mapping[str, str] = {}
        self._names: Mapping[str, Sequence[str]] = {}

    @property
    def targets(self) -> Mapping[str, str]:
        """The id that each alias stands for."""
        return MappingProxyType(self._targets)

    def publish(self, targets: Mapping[str, str]) -> None:
        """Give aliases their ids from now on, all in one step; requests keep what they got."""
        assert not targets.keys() & set(targets.values())
        names: defaultdict[str, list[str]] = defaultdict(list)
        for alias in sorted(targets):
            names[targets[alias]].append(alias)
        self._targets = dict(targets)
        self._names = {adapter_id: tuple(aliases) for adapter_id, aliases in names.items()}

    def names_of(self, adapter_id: str) -> Sequence[str]:
        """Return the aliases of an id, sorted."""
        return self._names.get(adapter_id, ())

    def resolve(self, name: str) -> str:
        """Return the id that a name stands for, which is the name itself unless it is an alias."""
        return self._targets.get(name, name)

    def resolve_parts(self, parts: Sequence[AdapterWeight]) -> tuple[AdapterWeight, ...]:
        """Return the parts of a mix with ids in place of aliases.

        Raises:
            InvalidRequestError: An adapter is named twice, at least once by an alias.
        """
        resolved = tuple(
            replace(part, adapter_id=self.resolve(part.adapter_id))
            if part.adapter_id in self._targets
            else part
            for part in parts
        )
        first: dict[str, AdapterWeight] = {}
        for index, (given, part) in enumerate(zip(parts, resolved, strict=True)):
            other = first.setdefault(part.adapter_id, given)
            if other.adapter_id != given.adapter_id:
                raise InvalidRequestError(
                    f"adapters[{index}].adapter_id",
                    f"{given.adapter_id!r} and {other.adapter_id!r} are both {part.adapter_id!r}; "
                    "name it once, and add the weights",
                )
        return resolved


def next_targets(
    current: Mapping[str, str], wanted: Mapping[str, str], *, loaded: Mapping[str, bool]
) -> dict[str, str]:
    """Return what aliases stand for while a manifest takes effect.

    A name goes on meaning what it meant until what it is to mean has been loaded, so that a
    version that cannot be loaded costs nobody the one before; so does an alias that has become an
    id of its own, and whatever is to mean that id means the same as it.

    Args:
        current: The ids of the aliases now.
        wanted: The ids that the manifest gives them.
        loaded: Whether what an id stands for has been loaded, for each registered id.
    """
    becoming_ids = {
        alias: target
        for alias, target in current.items()
        if alias not in wanted and loaded.get(alias) is False and target in loaded
    }
    targets = dict(becoming_ids)
    for alias, adapter_id in wanted.items():
        before = current.get(alias, alias)
        is_due = loaded.get(adapter_id) or before not in loaded
        targets[alias] = becoming_ids.get(adapter_id, adapter_id) if is_due else before
    in_use = set(targets.values())  # also those that stand for themselves still
    return {alias: target for alias, target in targets.items() if alias not in in_use}

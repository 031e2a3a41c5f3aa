"""RowPlan: for the rows of one forward, which of them each module treats in another way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.layers.bank import LayoutBank
from lokr_core.layers.group import Group
from lokr_core.layers.spans import RowSpan, part_rows
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, MixPart, module_weight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedRows:
    """The rows that one merged mix computes."""

    mix: MergedMix
    rows: Tensor | None  # None where it is every row of the forward


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplacedRows:
    """The rows that carry one adapter alone, whole, where it replaces a module's weight."""

    adapter: Adapter
    rows: Tensor | None  # None where it is every row of the forward


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleRows:
    """Which rows of a forward do not have the base's output at one module."""

    num_rows: int
    merged: tuple[MergedRows, ...] = ()
    replaced: tuple[ReplacedRows, ...] = ()
    groups: tuple[Group, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class RowPlan:
    """What to do for the rows of one forward."""

    num_rows: int
    spans: tuple[RowSpan, ...]
    merged: tuple[MergedRows, ...]
    groups: tuple[Group, ...]
    banks: tuple[tuple[LayoutBank, int], ...]  # each with the generation that the groups saw
    works: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # by module

    @property
    def is_current(self) -> bool:
        """Whether every bank still holds what the groups look at."""
        return all(bank.generation == seen for bank, seen in self.banks)

    def changes(self, path: str) -> bool:
        """Whether a row of the forward has another output than the base's at a module."""
        is_merged = any(merged.mix.changes(path) for merged in self.merged)
        return is_merged or any(path in group.layout.modules for group in self.groups)

    def at(self, path: str) -> ModuleRows:
        """Return which rows have another output than the base's at a module."""
        groups = tuple(group for group in self.groups if path in group.layout.modules)
        replaced: tuple[ReplacedRows, ...] = ()
        if any(g.layout.modules[path].replaces_weight or g.is_off(path) for g in groups):
            groups, replaced = self._apart(path, groups)
        return ModuleRows(
            num_rows=self.num_rows,
            merged=tuple(merged for merged in self.merged if merged.mix.changes(path)),
            replaced=replaced,
            groups=groups,
        )

    def _apart(
        self, path: str, groups: Sequence[Group]
    ) -> tuple[tuple[Group, ...], tuple[ReplacedRows, ...]]:
        """Take rows out of groups: where a mix is off, or a replacement of the module and no more.

        Off is off to the bit; a delta times 0 would not be, for -0.0 and infinities.
        """
        adapters = {
            part: adapter
            for group in groups
            for part, adapter in zip(group.parts, group.adapters, strict=True)
            if module_weight(part, path) != 0
        }

        def active(mix: AdapterMix) -> list[MixPart]:
            return [part for part in mix.parts if part in adapters]

        def alone(mix: AdapterMix) -> list[MixPart]:
            parts = active(mix)
            is_alone = len(parts) == 1 and module_weight(parts[0], path) == 1
            return parts if is_alone and replaces(parts[0]) else []

        def replaces(part: MixPart) -> bool:
            return adapters[part].layout.modules[path].replaces_weight

        of_mixes = part_rows(self.spans, lambda mix: [] if alone(mix) else active(mix))
        kept = [group for group in groups if of_mixes.keys() & group.parts]
        replaced = [
            ReplacedRows(adapter=adapters[part], rows=self._some(rows, adapters[part]))
            for part, rows in part_rows(self.spans, alone).items()
        ]
        return tuple(group.with_rows(of_mixes) for group in kept), tuple(replaced)

    def _some(self, rows: Tensor, adapter: Adapter) -> Tensor | None:
        return None if len(rows) == self.num_rows else rows.to(adapter.buffer.device)

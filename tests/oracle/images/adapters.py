"""The adapters of one family: a file of each kind, and what its trainer changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.oracle.images.peers import KINDS, Changes
from tests.oracle.images.trained import ImageFamily


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterFiles:
    """Adapters of one family on disk; an adapter's id is its kind."""

    family: ImageFamily
    folder: Path
    sources: dict[str, str]  # by adapter id, relative to the folder
    changes: dict[str, Changes]  # likewise


def write_adapters(
    family: ImageFamily, folder: Path, kinds: Sequence[str], seed: int
) -> AdapterFiles:
    """Have the trainers write one adapter of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = AdapterFiles(family=family, folder=folder, sources={}, changes={})
    for index, kind in enumerate(kinds):
        written = KINDS[kind](family, folder / kind, 100 * seed + index)
        files.sources[kind] = str(written.path.relative_to(folder))
        files.changes[kind] = written.changes
    return files

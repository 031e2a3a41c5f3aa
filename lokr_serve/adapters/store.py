"""AdapterStore: which ids the adapter folder gives, and whether its files have changed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lokr_core import is_adapter_id
from lokr_core.formats.locate import CONFIG_NAME, SUFFIX
from lokr_serve.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreScan:
    """What lies under the adapter folder."""

    sources: Mapping[str, str]  # by adapter id; relative to the folder
    problems: Sequence[str]  # what was found but cannot be registered, one sentence each


class AdapterStore:
    """The adapter folder; without one nothing can be loaded."""

    def __init__(self, directory: Path | None) -> None:
        self._root = None if directory is None else directory.resolve()

    def scan(self) -> StoreScan:
        """Find every adapter by looking at names alone; blocks on the file system.

        Raises:
            SettingsError: The adapter folder does not exist.
        """
        if self._root is None:
            return StoreScan(sources={}, problems=())
        if not self._root.is_dir():
            raise SettingsError(f"adapters.directory: {self._root} is not a folder")
        walk = _Walk(root=self._root)
        walk.run()
        return StoreScan(sources=walk.sources, problems=walk.problems)


Fingerprint = tuple[tuple[str, int, int, int], ...]


def fingerprint(path: Path) -> Fingerprint:
    """Return name, size, time of change and inode of a file, or of each entry of a folder.

    Equal fingerprints mean that the content is what it was, without reading it.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass over the folder; what gives one id twice is reported and given to neither."""

    root: Path
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=lambda: [""])  # still to visit, each with its "/"
    duplicates: set[str] = field(default_factory=set)

    def run(self) -> None:
        if (self.root / CONFIG_NAME).exists():
            self.problems.append(
                f"{self.root} is itself an adapter and gives it no id; "
                "set adapters.directory to the folder above"
            )
            return
        while self.folders:
            self._visit_folder(self.folders.pop())
        for adapter_id in self.duplicates:
            del self.sources[adapter_id]

    def _visit_folder(self, prefix: str) -> None:
        try:
            with os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    self._visit_entry(entry, prefix + entry.name)
        except OSError as error:
            self.problems.append(f"folder {prefix!r} cannot be read: {error.strerror}")

    def _visit_entry(self, entry: os.DirEntry[str], name: str) -> None:
        if entry.is_symlink() and not self._is_link_inside(Path(entry.path)):
            self.problems.append(f"{name!r} is a link to nowhere or out of the adapter folder")
        elif entry.is_dir():
            self._visit_directory(entry, name)
        elif name.endswith(SUFFIX):
            self._add(name.removesuffix(SUFFIX), name)

    def _visit_directory(self, entry: os.DirEntry[str], name: str) -> None:
        if Path(entry.path, CONFIG_NAME).exists():
            self._add(name, name)
        elif entry.is_symlink():  # its target is visited where it lies; a loop would not end
            self.problems.append(f"{name!r} is a link to a folder that is no adapter; not entered")
        elif not is_adapter_id(name):
            self.problems.append(f"folder {name!r} cannot be part of an adapter id; not entered")
        else:
            self.folders.append(f"{name}/")

    def _is_link_inside(self, path: Path) -> bool:
        try:
            return path.resolve(strict=True).is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def _add(self, adapter_id: str, source: str) -> None:
        if not is_adapter_id(adapter_id):
            self.problems.append(f"{source!r} gives no valid adapter id")
        elif adapter_id in self.sources:
            self.duplicates.add(adapter_id)
            self.problems.append(
                f"{source!r} and {self.sources[adapter_id]!r} both give the id {adapter_id!r}; "
                "neither is registered"
            )
        else:
            self.sources[adapter_id] = source

"""Shelf: how uploads lie on the disk, whole ones and parts."""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lokr_core.formats.peft import CONFIG_NAME
from lokr_core.formats.source import TENSORS_NAME
from lokr_serve.adapters.sources.room import (
    FILE_MODE,
    FOLDER_MODE,
    remove_tree,
    sync_folder,
)
from lokr_serve.adapters.sources.stored_file import StoredFile, digest_of

SCHEME = "upload:"
PART_SUFFIX = ".part"
NEW_SUFFIX = ".new"

_KEY = r"[0-9a-f]{64}(?:-[0-9a-f]{16})?"
_ENTRY = re.compile(rf"{_KEY}|[0-9a-f]{{64}}\{PART_SUFFIX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedFile:
    """A file that is about to be uploaded."""

    digest: str  # hex SHA-256, in lower case
    num_bytes: int
    config: bytes | None = None  # PEFT's adapter_config.json beside it

    @property
    def key(self) -> str:
        """What the file is stored under: equal for equal content alone."""
        if self.config is None:
            return self.digest
        return f"{self.digest}-{hashlib.sha256(self.config).hexdigest()[:16]}"

    @property
    def source(self) -> str:
        """The source that stands for the file once it is there."""
        return f"{SCHEME}{self.key}"

    @property
    def part_name(self) -> str:
        """What is stored of it while it is not whole."""
        return f"{self.digest}{PART_SUFFIX}"


def is_key(text: str) -> bool:
    """Whether a text is the key of an upload."""
    return re.fullmatch(_KEY, text) is not None


def is_entry(name: str) -> bool:
    """Whether a file name is one of an upload, or of a part of one."""
    return _ENTRY.fullmatch(name) is not None


class Shelf:
    """A folder with ``<key>/adapter_model.safetensors`` and ``<digest>.part``; blocks.

    A folder appears under its key in one step, when all in it is on the disk. Whatever a crash
    leaves is a part, or is made one again by ``recover``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def recover(self) -> None:
        """Bring back the parts that a crash left on their way to be whole."""
        for path in self._root.glob(f"*{NEW_SUFFIX}"):
            key = path.name.removesuffix(NEW_SUFFIX)
            if is_key(key):
                self._take_back(path, key.partition("-")[0])

    def open_part(self, file: AnnouncedFile) -> StoredFile:
        """Open what is there of a file, or begin it."""
        return StoredFile(self._root / file.part_name, max_bytes=file.num_bytes)

    def tensors(self, key: str) -> Path | None:
        """Return the tensor file of a whole upload, if it is there."""
        folder = self._root / key
        path = folder / TENSORS_NAME
        is_there = not folder.is_symlink() and not path.is_symlink() and path.is_file()
        return path if is_there else None

    def holds(self, file: AnnouncedFile) -> bool:
        """Whether a whole upload is there, with the bytes that it should have; reads them all."""
        path = self.tensors(file.key)
        return path is not None and digest_of(path) == file.digest

    def discard(self, key: str) -> None:
        """Remove a whole upload, if it is there, that does not have the bytes it should have."""
        remove_tree(self._root / key)

    def complete(self, file: AnnouncedFile, part: StoredFile) -> None:
        """Put a part in its place, which is free, as a whole file.

        Raises:
            OSError: It could not be done; the part is where it was.
        """
        part.sync()
        new = self._root / f"{file.key}{NEW_SUFFIX}"
        remove_tree(new)
        try:
            new.mkdir(mode=FOLDER_MODE)
            if file.config is not None:
                _write(new / CONFIG_NAME, file.config)
            part.path.rename(new / TENSORS_NAME)
            sync_folder(new)
            new.rename(self._root / file.key)
        except OSError:
            self._take_back(new, file.digest)
            raise
        sync_folder(self._root)

    def _take_back(self, new: Path, digest: str) -> None:
        with suppress(FileNotFoundError):
            (new / TENSORS_NAME).rename(self._root / f"{digest}{PART_SUFFIX}")
        remove_tree(new)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)

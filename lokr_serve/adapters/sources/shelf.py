"""Shelf: how uploads lie on the disk, whole ones and parts."""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lokr_core.formats.locate import CONFIG_NAME, TENSORS_NAME
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
SENDER_PREFIX = "sent-by-"  # of an empty file beside the tensors, one for each who has sent them
NOBODY = "anyone"  # stands there for all who have no name

_KEY = r"[0-9a-f]{64}(?:-[0-9a-f]{16})?"
_SENDER = r"(?:\.[0-9a-f]{32})?"
_ENTRY = re.compile(rf"{_KEY}|[0-9a-f]{{64}}{_SENDER}\{PART_SUFFIX}")
_NEW = re.compile(rf"({_KEY})({_SENDER})\{NEW_SUFFIX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnouncedFile:
    """A file that is about to be uploaded.

    To know its digest is not to have it: what is there of it counts only for whoever sent it.
    """

    digest: str  # hex SHA-256, in lower case
    num_bytes: int
    config: bytes | None = None  # PEFT's adapter_config.json beside it
    owner: str = ""  # who sends it; "" is whoever has no name, all of whom are one

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
        """What is stored of what its owner has sent, while it is not whole."""
        return f"{self.digest}{self._dotted_sender}{PART_SUFFIX}"

    @property
    def new_name(self) -> str:
        """What it is stored under on its way to be whole."""
        return f"{self.key}{self._dotted_sender}{NEW_SUFFIX}"

    @property
    def sender_name(self) -> str:
        """What lies beside the whole file if its owner has sent it."""
        return f"{SENDER_PREFIX}{self._sender or NOBODY}"

    @property
    def _sender(self) -> str:
        """What stands for the owner on the disk, since its name may hold anything."""
        return hashlib.sha256(self.owner.encode()).hexdigest()[:32] if self.owner else ""

    @property
    def _dotted_sender(self) -> str:
        return f".{self._sender}" if self._sender else ""


def is_key(text: str) -> bool:
    """Whether a text is the key of an upload."""
    return re.fullmatch(_KEY, text) is not None


def is_entry(name: str) -> bool:
    """Whether a file name is one of an upload, or of a part of one."""
    return _ENTRY.fullmatch(name) is not None


class Shelf:
    """A folder with ``<key>/adapter_model.safetensors`` and ``<digest>[.<sender>].part``; blocks.

    A folder appears under its key in one step, when all in it is on the disk. Whatever a crash
    leaves is a part, or is made one again by ``recover``. Of one key, one thread at a time may
    look what is there and change it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def recover(self) -> None:
        """Bring back the parts that a crash left on their way to be whole."""
        for path in self._root.glob(f"*{NEW_SUFFIX}"):
            if (match := _NEW.fullmatch(path.name)) is not None:
                digest = match[1].partition("-")[0]
                self._take_back(path, f"{digest}{match[2]}{PART_SUFFIX}")

    def open_part(self, file: AnnouncedFile) -> StoredFile:
        """Open what is there of a file, or begin it."""
        return StoredFile(self._root / file.part_name, max_bytes=file.num_bytes)

    def tensors(self, key: str) -> Path | None:
        """Return the tensor file of a whole upload, if it is there."""
        folder = self._root / key
        path = folder / TENSORS_NAME
        is_there = not folder.is_symlink() and not path.is_symlink() and path.is_file()
        return path if is_there else None

    def has_come(self, file: AnnouncedFile) -> bool:
        """Whether a whole upload is there that the owner of this one has sent."""
        return (self._root / file.key / file.sender_name).exists()

    def holds(self, file: AnnouncedFile) -> bool:
        """Whether a whole upload is there, with the bytes that it should have; reads them all."""
        path = self.tensors(file.key)
        return path is not None and digest_of(path) == file.digest

    def discard(self, key: str) -> None:
        """Remove a whole upload, if it is there, that does not have the bytes it should have."""
        remove_tree(self._root / key)

    def complete(self, file: AnnouncedFile, part: StoredFile) -> None:
        """Put a part in its place as a whole file; equal content that is there stays instead.

        Raises:
            OSError: It could not be done; the part is where it was.
        """
        if self.holds(file):
            self._note_sender(file)
            part.remove()
            return
        self.discard(file.key)
        self._place(file, part)

    def forget_sender(self, file: AnnouncedFile) -> bool:
        """Take back that the owner has sent a whole upload; return whether nobody else has."""
        folder = self._root / file.key
        (folder / file.sender_name).unlink(missing_ok=True)
        return not any(folder.glob(f"{SENDER_PREFIX}*"))

    def _note_sender(self, file: AnnouncedFile) -> None:
        folder = self._root / file.key
        (folder / file.sender_name).touch(mode=FILE_MODE)
        sync_folder(folder)

    def _place(self, file: AnnouncedFile, part: StoredFile) -> None:
        part.sync()
        new = self._root / file.new_name
        remove_tree(new)
        try:
            new.mkdir(mode=FOLDER_MODE)
            if file.config is not None:
                _write(new / CONFIG_NAME, file.config)
            (new / file.sender_name).touch(mode=FILE_MODE)
            part.path.rename(new / TENSORS_NAME)
            sync_folder(new)
            new.rename(self._root / file.key)
        except OSError:
            self._take_back(new, file.part_name)
            raise
        sync_folder(self._root)

    def _take_back(self, new: Path, part_name: str) -> None:
        with suppress(FileNotFoundError):
            (new / TENSORS_NAME).rename(self._root / part_name)
        remove_tree(new)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)

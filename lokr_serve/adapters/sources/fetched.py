"""FetchedFiles: copies of remote files, kept on this machine within a budget of bytes."""

import errno
import hashlib
import re
import secrets
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lokr_core.formats.locate import CONFIG_NAME
from lokr_serve.adapters.sources.located import Located
from lokr_serve.adapters.sources.room import (
    FOLDER_MODE,
    Room,
    remove_tree,
    storing,
    sync_folder,
)
from lokr_serve.adapters.sources.stored_file import StoredFile, digest_of

SETTING = "adapters.fetched_bytes"
NEW_PREFIX = "new-"

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # of a folder that is to be renamed
_ENTRY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyKey:
    """What a copy is of: a URI, in the state that its store told."""

    uri: str
    state: str  # "" if the store tells nothing that changes with the content

    @property
    def prefix(self) -> str:
        """What the name of the copy starts with; one without a state is nobody's copy twice."""
        state = _hash(self.state) if self.state else secrets.token_hex(16)
        return f"{_hash(self.uri)}-{state}-"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Incoming:
    """A file that comes in pieces."""

    num_bytes: int
    chunks: Generator[bytes, None, None]  # closed once it is done with


class FetchedFiles:
    """Folders by URI, state and digest; blocks, except ``release``, and may be used by threads.

    The name of a folder says what it holds, so that nothing else has to be kept in step with it;
    the reader checks the digest again. The least recently used make way for others.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root
        self._room = Room(
            root,
            max_bytes=max_bytes,
            setting=SETTING,
            root_setting="adapters.fetched",
            is_entry=_is_entry,
        )

    def open(self) -> None:
        """Make the folder, and remove what a crash left.

        Raises:
            SettingsError: The folder cannot be made, or another server has it.
        """
        self._room.open()
        for path in self._root.glob(f"{NEW_PREFIX}*"):
            remove_tree(path)

    def close(self) -> None:
        """Leave the folder to others."""
        self._room.close()

    def take_digest(self, uri: str, digest: str) -> str | None:
        """Hold a copy of a URI with this digest, in whatever state; return its name."""
        prefix, suffix = f"{_hash(uri)}-", f"-{digest}"
        return self._room.take(lambda name: name.startswith(prefix) and name.endswith(suffix))

    def take(self, key: CopyKey) -> str | None:
        """Hold the copy of a URI in this state, if it is there; return its name."""
        prefix = key.prefix
        return self._room.take(lambda name: name.startswith(prefix))

    def store(self, key: CopyKey, files: Mapping[str, Incoming], tensors_name: str) -> str:
        """Store the files of a URI, and hold the copy; return its name.

        Args:
            key: What they are of.
            files: What comes, by name.
            tensors_name: Which of them is the tensor file.

        Raises:
            StorageFullError: There is no room, by the budget or on the disk.
            IncompleteError: A file has more or fewer bytes than was told.
        """
        new = self._root / f"{NEW_PREFIX}{secrets.token_hex(8)}"
        with self._room.reserving(new.name, sum(file.num_bytes for file in files.values())):
            try:
                with storing(SETTING):
                    new.mkdir(mode=FOLDER_MODE)
                    digests = {name: _write(new / name, file) for name, file in files.items()}
                    name = f"{key.prefix}{digests[tensors_name]}"
                    sync_folder(new)
                    self._place(new, name)
            finally:
                remove_tree(new)
        return name

    def _place(self, new: Path, name: str) -> None:
        """Put a copy in its place, and hold it; one that another fetch put there is as good."""
        self._room.hold(name)
        try:
            new.rename(self._root / name)
        except OSError as error:
            if error.errno not in _TAKEN:
                self._room.release(name)
                raise

    def locate(self, name: str) -> Located:
        """Return the tensor file of a copy that is held."""
        files = [path for path in (self._root / name).iterdir() if path.name != CONFIG_NAME]
        return Located(path=files[0], digest=name.rpartition("-")[2])

    def release(self, name: str) -> None:
        """Let go of a copy."""
        self._room.release(name)

    def is_spoilt(self, name: str) -> bool:
        """Whether the tensor file of a copy that is held is not what it was; reads all of it."""
        located = self.locate(name)
        return digest_of(located.path) != located.digest

    def drop(self, name: str) -> None:
        """Remove a copy, unless others hold it."""
        self._room.remove(name)


class IncompleteError(Exception):
    """A store brought other bytes than it told."""


def _write(path: Path, file: Incoming) -> str:
    """Write a file and return its digest."""
    stored = StoredFile(path, max_bytes=0)
    try:
        with closing(file.chunks) as chunks:
            _append(stored, chunks, file.num_bytes)
        stored.sync()
        return stored.digest()
    finally:
        stored.close()


def _append(stored: StoredFile, chunks: Iterable[bytes], num_bytes: int) -> None:
    for chunk in chunks:
        if stored.num_bytes + len(chunk) > num_bytes:
            raise IncompleteError(f"more than the {num_bytes} bytes that its store told")
        stored.append(chunk)
    if stored.num_bytes < num_bytes:
        raise IncompleteError(f"{stored.num_bytes} of the {num_bytes} bytes came")


def state_of(facts: Iterable[str]) -> str:
    """Return the state of several files by their facts; "" if one of them has none."""
    known = list(facts)
    return "\n".join(known) if all(known) else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_entry(name: str) -> bool:
    return _ENTRY.fullmatch(name) is not None

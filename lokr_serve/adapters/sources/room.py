"""Room: the bytes that a folder of entries may take, of which the oldest make way for others."""

import errno
import fcntl
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lokr_serve.errors import SettingsError, StorageFullError

TRASH_PREFIX = "trash-"
FOLDER_MODE = 0o700
FILE_MODE = 0o600
LOCK_NAME = ".lock"  # of a file in the folder, locked as long as a server has it

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A file, or a folder of files."""

    name: str
    num_bytes: int
    changed_at: float  # seconds since 1970


class Room:
    """Entries of one folder by name; may be used by several threads.

    What is on the disk is counted anew each time, so that no restart or crash makes the count
    wrong. What is held or reserved is never removed, and no link is ever followed.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int,
        setting: str,
        root_setting: str,
        is_entry: Callable[[str], bool],
    ) -> None:
        """Bind the folder.

        Args:
            root: The folder; it belongs to this server alone.
            max_bytes: What its entries may take.
            setting: What the limit is called, for messages.
            root_setting: What the folder is called.
            is_entry: Whether a name is one of an entry; what else lies there is left alone.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._setting = setting
        self._root_setting = root_setting
        self._is_entry = is_entry
        self._making_room = threading.Lock()
        self._reserved: dict[str, int] = {}
        self._changing = threading.Lock()  # held for moments only, also on the event loop
        self._held: Counter[str] = Counter()
        self._lock: int | None = None  # the descriptor of the file, which the system unlocks

    def open(self) -> None:
        """Make the folder if it is missing, and remove what a crash left half removed; blocks.

        Raises:
            SettingsError: It cannot be made, or another server has it.
        """
        try:
            self._root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._lock = _locked(self._root / LOCK_NAME)
            trash = [path for path in self._root.iterdir() if path.name.startswith(TRASH_PREFIX)]
        except OSError as error:
            problem = f"{self._root_setting}: {self._root}: {error.strerror}"
            raise SettingsError(problem) from error
        for path in trash:
            remove_tree(path)

    def close(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def reserving(self, name: str, num_bytes: int) -> Iterator[None]:
        """Make room for an entry to grow to so many bytes, and keep it while the block runs.

        Raises:
            StorageFullError: There is not enough beside what is held or reserved, or on the disk.
        """
        self.reserve(name, num_bytes)
        try:
            yield
        finally:
            self.unreserve(name)

    def reserve(self, name: str, num_bytes: int) -> None:
        """Make room for an entry to grow to so many bytes, until it is given back; blocks."""
        with self._making_room:
            entries = {entry.name: entry for entry in self._entries() if entry.name != name}
            names = {*entries, *self._reserved} - {name}
            sizes = {
                key: max(
                    entries[key].num_bytes if key in entries else 0, self._reserved.get(key, 0)
                )
                for key in names
            }
            free = [entry for entry in entries.values() if self._is_free(entry.name)]
            excess = sum(sizes.values()) + num_bytes - self._max_bytes
            if excess > sum(entry.num_bytes for entry in free):
                raise StorageFullError(
                    self._setting,
                    f"{num_bytes} bytes do not fit into its {self._max_bytes} bytes beside what "
                    "is in use",
                )
            for entry in sorted(free, key=lambda entry: entry.changed_at):
                if excess > 0 and self.remove(entry.name):
                    excess -= entry.num_bytes
            self._require_disk(name, num_bytes)
            self._reserved[name] = num_bytes

    def unreserve(self, name: str) -> None:
        """Give back what was reserved for an entry."""
        self._reserved.pop(name, None)

    def hold(self, name: str) -> None:
        """Keep an entry, whether or not it is there yet; never blocks."""
        with self._changing:
            self._held[name] += 1

    def release(self, name: str) -> bool:
        """Let go of an entry, and return whether nobody holds it any more; never blocks."""
        with self._changing:
            self._held[name] -= 1
            is_last = not self._held[name]
            if is_last:
                del self._held[name]
            return is_last

    def take(self, is_wanted: Callable[[str], bool]) -> str | None:
        """Hold an entry that is there, make it the youngest, and return its name; blocks."""
        for path in list(self._root.iterdir()):
            name = path.name
            if self._is_entry(name) and is_wanted(name) and self._hold_present(name):
                os.utime(path, follow_symlinks=False)
                return name
        return None

    def remove(self, name: str) -> bool:
        """Remove an entry unless it is held, and return whether it was removed; blocks."""
        trash = self._root / f"{TRASH_PREFIX}{secrets.token_hex(8)}"
        with self._changing:
            if self._held[name]:
                return False
            with suppress(FileNotFoundError):
                (self._root / name).rename(trash)
        remove_tree(trash)
        return True

    def _hold_present(self, name: str) -> bool:
        with self._changing:
            path = self._root / name
            if path.is_symlink() or not path.exists():
                return False
            self._held[name] += 1
            return True

    def _is_free(self, name: str) -> bool:
        return name not in self._reserved and name not in self._held

    def _entries(self) -> Iterator[_Entry]:
        with os.scandir(self._root) as found:
            for entry in found:
                if self._is_entry(entry.name):
                    with suppress(FileNotFoundError):  # it went meanwhile
                        yield _measure(entry)

    def _require_disk(self, name: str, num_bytes: int) -> None:
        with suppress(FileNotFoundError):
            num_bytes -= (self._root / name).lstat().st_size
        if shutil.disk_usage(self._root).free < num_bytes:
            raise StorageFullError(self._setting, f"its disk has no {num_bytes} bytes left")


def _locked(path: Path) -> int:
    """Return the descriptor of a file that no other process has locked, and lock it.

    Raises:
        OSError: Another has, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        problem = "another server uses this folder; each needs one of its own"
        raise OSError(error.errno, problem) from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _measure(entry: os.DirEntry[str]) -> _Entry:
    stat = entry.stat(follow_symlinks=False)
    if entry.is_dir(follow_symlinks=False):
        num_bytes = sum(path.lstat().st_size for path in Path(entry.path).iterdir())
    else:
        num_bytes = stat.st_size
    return _Entry(name=entry.name, num_bytes=num_bytes, changed_at=stat.st_mtime)


def remove_tree(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def storing(subject: str) -> Iterator[None]:
    """Tell a full disk apart from all else that can fail in the block.

    Raises:
        StorageFullError: The disk is full, or the quota is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(subject, "the disk is full") from error


def sync_folder(path: Path) -> None:
    """Make sure that the names in a folder outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

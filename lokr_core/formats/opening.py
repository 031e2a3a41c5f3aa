"""Opening files with care: regular ones, that nobody writes to meanwhile."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from lokr_core.errors import AdapterFileError, quoted


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file that is no larger than ``max_bytes``.

    Raises:
        AdapterFileError: The file is missing, no regular file, too large, or cannot be read.
    """
    with opened(path) as (file, num_bytes):
        if num_bytes > max_bytes:
            raise AdapterFileError(f"{path}: has {num_bytes} bytes, more than {max_bytes}")
        content = bytearray(num_bytes)
        fill(path, file, memoryview(content))
    return bytes(content)


@contextmanager
def opened(path: Path) -> Iterator[tuple[FileIO, int]]:
    """Yield a regular file and its size, and check afterwards that it was left alone meanwhile."""
    with cannot_read(path), _open(path) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise AdapterFileError(f"{path}: not a regular file")
        yield file, before.st_size
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise AdapterFileError(f"{path}: was written to while it was read")


@contextmanager
def cannot_read(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the path."""
    try:
        yield
    except IsADirectoryError as error:
        raise AdapterFileError(f"{path}: not a regular file") from error
    except OSError as error:
        raise AdapterFileError(f"{path}: cannot be read: {error.strerror}") from error


def fill(path: Path, file: FileIO, view: memoryview) -> None:
    """Read on from an opened file until ``view`` is full.

    Raises:
        AdapterFileError: The file ends before that.
    """
    end = 0
    while end < len(view):
        num_read = file.readinto(view[end:])
        if not num_read:
            raise AdapterFileError(f"{path}: became shorter while it was read")
        end += num_read


def _open(path: Path) -> FileIO:
    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # or a pipe would be waited for

    try:
        return FileIO(path, "rb", opener=without_waiting)
    except ValueError as error:  # a NUL, say
        raise AdapterFileError(f"{quoted(str(path))}: is no path: {error}") from error

"""StoredFile: a file that is being received, and the hash over what it holds so far."""

import hashlib
import os
from pathlib import Path

from lokr_serve.adapters.sources.room import FILE_MODE

BLOCK_BYTES = 16 << 20  # read at a time to hash what was there before


class StoredFile:
    """Grows by what is appended; blocks, and is used by one thread at a time.

    The hash over what an earlier call left is made of the bytes on the disk, before the first
    append: nothing that was noted of them is trusted.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Open a file, or make it; one that has grown beyond ``max_bytes`` is begun anew."""
        self.path = path
        if path.is_symlink():
            path.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, FILE_MODE)
        self.num_bytes = os.fstat(self._descriptor).st_size
        if self.num_bytes > max_bytes:
            os.ftruncate(self._descriptor, 0)
            self.num_bytes = 0
        self._hash = hashlib.sha256()
        self._num_hashed = 0

    @property
    def is_hashed(self) -> bool:
        """Whether the hash is over all that the file holds."""
        return self._num_hashed == self.num_bytes

    def hash_block(self) -> None:
        """Hash the next block of what was there before."""
        block = os.pread(self._descriptor, BLOCK_BYTES, self._num_hashed)
        if not block:
            raise OSError("the file became shorter while it was hashed")
        self._hash.update(block)
        self._num_hashed += len(block)

    def append(self, chunk: bytes) -> None:
        """Write bytes at the end."""
        assert self.is_hashed
        rest = memoryview(chunk)
        while rest:
            num_written = os.pwrite(self._descriptor, rest, self.num_bytes)
            self._hash.update(rest[:num_written])
            self.num_bytes += num_written
            self._num_hashed += num_written
            rest = rest[num_written:]

    def digest(self) -> str:
        """Return the hex SHA-256 of what the file holds."""
        assert self.is_hashed
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Make sure that the bytes outlast a loss of power."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; what it holds stays."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file, which may still be open."""
        self.path.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()

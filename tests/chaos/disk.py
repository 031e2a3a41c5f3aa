"""Disk: a file system of its own that is soon full, where the machine allows one."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DISK_BYTES = 512 * 1024
COMMAND_SECONDS = 30


class Disk:
    """A folder on a file system of ``DISK_BYTES``, and a file that can fill it."""

    def __init__(self, folder: Path, *, is_small: bool) -> None:
        self.folder = folder
        self.is_small = is_small

    def fill(self, num_left: int) -> None:
        """Take all room but some, if the file system is the disk's own."""
        if not self.is_small:
            return
        num_bytes = shutil.disk_usage(self.folder).free - num_left
        with suppress(OSError):  # others write, too
            self._ballast.write_bytes(bytes(max(0, num_bytes)))

    def clear(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mount a small file system over a folder while the block runs, if that is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    is_small = _works(mount)
    try:
        yield Disk(folder, is_small=is_small)
    finally:
        if is_small:
            _works(["umount", "--lazy", str(folder)])


def _works(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    ended = subprocess.run(command, capture_output=True, check=False, timeout=COMMAND_SECONDS)
    return ended.returncode == 0

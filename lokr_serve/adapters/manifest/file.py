"""ManifestFile: the manifest on disk, and when it has changed."""

import stat
from enum import Enum
from pathlib import Path

from lokr_serve.adapters.manifest.reading import MAX_BYTES, Manifest, read_manifest
from lokr_serve.errors import ManifestError, SettingsError

# A file that was just changed may not be whole yet, and half a list of adapters is a list of
# adapters: it is read when it has stayed the same for so long.
SETTLE_SECONDS = 0.5


class _Absence(Enum):
    """What a look finds in place of a file's state."""

    NEVER_LOOKED = "nobody has looked yet"
    NO_FILE = "there is no file"


_State = tuple[int, ...] | _Absence


class ManifestFile:
    """One file, followed through every link."""

    def __init__(self, path: Path) -> None:
        """Read the file as it is; this blocks, as looking does.

        Raises:
            SettingsError: There is none.
            ManifestError: It is malformed, or cannot be read.
        """
        self._path = path
        self._seen_state = self._read_state = self._state()
        if self._read_state is _Absence.NO_FILE:
            raise SettingsError(f"adapters.manifest: {path} is no file")
        self.first = read_manifest(self._bytes())

    @property
    def is_changing(self) -> bool:
        """Whether the last look found a change that is not read yet; look again soon."""
        return self._seen_state != self._read_state

    def look(self) -> Manifest | None:
        """Read the file if it has changed, and has stayed the same since the last look.

        Returns:
            None if there is nothing new.

        Raises:
            ManifestError: It has become malformed or is gone, told once for each change; or it
                cannot be read, told at each look.
        """
        before, self._seen_state = self._seen_state, self._state()
        state = self._seen_state
        if state == self._read_state or state != before:
            return None
        self._read_state = state
        if state is _Absence.NO_FILE:
            raise ManifestError(f"{self._path} is gone")
        data = self._bytes()
        if self._state() != state:  # it changed under the reading
            self._read_state = _Absence.NEVER_LOOKED
            return None
        return read_manifest(data)

    def _state(self) -> _State:
        try:
            found = self._path.stat()
        except OSError:
            return _Absence.NO_FILE
        if not stat.S_ISREG(found.st_mode):
            return _Absence.NO_FILE
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _bytes(self) -> bytes:
        """Return the content, or enough of it to see that it is too long."""
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            self._read_state = _Absence.NEVER_LOOKED  # it may be read at the next look
            raise ManifestError(f"{self._path} cannot be read: {error.strerror}") from error

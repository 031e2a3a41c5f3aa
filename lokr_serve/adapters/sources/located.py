"""What a source stands for on this machine, and what every kind of source can do."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A file or folder to read an adapter from."""

    path: Path
    digest: str | None = None  # hex SHA-256 that its tensor file had when it was stored


class Source(Protocol):
    """One kind of source."""

    def held(self, source: str, digest: str | None) -> AbstractAsyncContextManager[Located]:
        """Keep a source's files in place while the block reads them; waits for those far away.

        Args:
            source: As it was given.
            digest: Hex SHA-256 that the tensor file must have, if it was given; the reader
                checks it.

        Raises:
            SourceError: There is no such source, or it may not be read.
            SourceUnavailableError: It cannot be reached now.
            StorageFullError: There is no room to keep a copy.
        """

"""What was made once, and need not be made again while its recipe is the same."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """A file beside what was made, with the digest of the sources that made it."""

    path: Path
    digest: str

    @classmethod
    def of(cls, folder: Path, sources: Iterable[Path]) -> "Marker":
        """Return the marker in a folder, for these sources."""
        content = b"".join(source.read_bytes() for source in sources)
        return cls(path=folder / "recipe.sha256", digest=hashlib.sha256(content).hexdigest())

    @property
    def is_set(self) -> bool:
        """Whether it was made by these sources."""
        return self.path.exists() and self.path.read_text() == self.digest

    def set(self) -> None:
        """Note that it was made."""
        self.path.write_text(self.digest)

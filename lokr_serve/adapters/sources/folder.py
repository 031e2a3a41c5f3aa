"""FolderSource: paths inside the adapter folder."""

from pathlib import Path

from lokr_serve.adapters.sources.inside import require_readable, resolve_inside
from lokr_serve.adapters.sources.located import Located
from lokr_serve.errors import SourceError

PLACE = "the adapter folder"


class FolderSource:
    """Finds the file or folder that a path names; without an adapter folder there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._root = None if directory is None else directory.resolve()

    def locate(self, source: str) -> Located:
        """Return what a path names; blocks on the file system.

        Raises:
            SourceError: It does not exist, or it lies outside the folder, also by a link.
        """
        if self._root is None:
            raise SourceError(source, "cannot be loaded: the server has no adapters.directory")
        path = self._root / source
        if ".." in path.parts or not path.is_relative_to(self._root) or path == self._root:
            raise SourceError(source, "is not a path inside the adapter folder")
        resolved = resolve_inside(source, path, self._root, PLACE)
        require_readable(source, resolved, self._root, PLACE)
        return Located(path=resolved)

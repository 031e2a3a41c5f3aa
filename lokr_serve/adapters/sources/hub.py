"""HubSource: ``hf://org/name[@revision][/path]`` in a folder of Hugging Face's hub cache layout.

A repository is ``models--org--name``, with ``refs/<revision>`` files that name commits, and
``snapshots/<commit>/...`` whose files are links into ``blobs``. Nothing is downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from lokr_serve.adapters.sources.inside import require_readable, resolve_inside
from lokr_serve.adapters.sources.located import Located
from lokr_serve.errors import SettingsError, SourceError

SCHEME = "hf://"
DEFAULT_REVISION = "main"
FORM = "hf://org/name[@revision][/path]"
PLACE = "the repository's folder under adapters.hub"
MAX_REF_BYTES = 128  # a commit is 40 hex digits

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_STEP = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._+=, -]+"  # of a path; never . or ..
_SOURCE = re.compile(
    rf"hf://(?P<org>{_WORD})/(?P<name>{_WORD})"
    rf"(?:@(?P<revision>refs/(?:pr|convert)/{_WORD}|[A-Za-z0-9](?:[A-Za-z0-9._%-]*)))?"
    rf"(?:/(?P<path>{_STEP}(?:/{_STEP})*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAddress:
    """What a source of the hub names."""

    folder: str  # of the repository
    revision: str
    path: str  # inside the repository; "" is all of it

    @classmethod
    def parse(cls, source: str) -> "HubAddress":
        """Read a source.

        Raises:
            SourceError: It is not of the form.
        """
        match = _SOURCE.fullmatch(source)
        if match is None:
            raise SourceError(source, f"is not of the form {FORM}")
        org, name = match["org"], match["name"]
        # A slash of a branch's name is written %2F, so that it is not taken for the path's.
        revision = (match["revision"] or DEFAULT_REVISION).replace("%2F", "/")
        if any("--" in word or ".." in word for word in (org, name)):
            raise SourceError(source, "names no repository: neither -- nor .. may stand in one")
        if "%" in revision or any(step in ("", ".", "..") for step in revision.split("/")):
            raise SourceError(source, "names no revision; of escapes only %2F is known")
        folder = f"models--{org}--{name}"
        return cls(folder=folder, revision=revision, path=match["path"] or "")


class HubSource:
    """Finds a repository's files; without a hub folder there are none."""

    def __init__(self, directory: Path | None) -> None:
        self._root = None if directory is None else directory.resolve()

    def open(self) -> None:
        """Check that the folder is there.

        Raises:
            SettingsError: It is not.
        """
        if self._root is not None and not self._root.is_dir():
            raise SettingsError(f"adapters.hub: {self._root} is not a folder")

    def locate(self, source: str) -> Located:
        """Return what a source names; blocks on the file system.

        Raises:
            SourceError: It is malformed, is not there, or leads out of its repository's folder.
        """
        if self._root is None:
            raise SourceError(source, "cannot be loaded: the server has no adapters.hub")
        address = HubAddress.parse(source)
        repository = self._root / address.folder
        if repository.is_symlink() or not repository.is_dir():
            raise SourceError(source, "is not in the folder adapters.hub; nothing is downloaded")
        snapshot = repository / "snapshots" / _commit(source, repository, address.revision)
        path = snapshot / address.path
        resolved = resolve_inside(source, path, repository, PLACE)
        # The name that a link has tells what it is; where it leads, only a digest.
        found = resolve_inside(source, path.parent, repository, PLACE) / path.name
        require_readable(source, resolved, repository, PLACE)
        return Located(path=found)


def _commit(source: str, repository: Path, revision: str) -> str:
    """Return the commit that a revision stands for."""
    if _COMMIT.fullmatch(revision) and (repository / "snapshots" / revision).is_dir():
        return revision
    try:
        file = resolve_inside(source, repository / "refs" / revision, repository, PLACE)
    except SourceError as error:
        raise SourceError(
            source, f"has no revision {revision!r} in {PLACE}; nothing is downloaded"
        ) from error
    is_small = file.is_file() and file.stat().st_size <= MAX_REF_BYTES
    commit = file.read_text("ascii", "replace").strip() if is_small else ""
    if _COMMIT.fullmatch(commit) is None:
        raise SourceError(source, f"has a malformed refs/{revision} in {PLACE}")
    return commit

"""Paths that must not leave a folder, neither by their text nor by a link."""

from pathlib import Path

from lokr_serve.errors import SourceError


def resolve_inside(source: str, path: Path, root: Path, place: str) -> Path:
    """Return where a path leads, with every link followed; blocks on the file system.

    Args:
        source: As it was given, for messages.
        path: The path.
        root: The folder, itself resolved.
        place: What the folder is called, such as ``the adapter folder``.

    Raises:
        SourceError: It does not exist, or leads out of the folder.
    """
    try:
        resolved = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(source, f"does not exist in {place}") from error
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise SourceError(source, f"cannot be resolved in {place}") from error
    if not resolved.is_relative_to(root):
        raise SourceError(source, f"leaves {place}: {path.name!r} is a link out")
    return resolved


def require_readable(source: str, path: Path, root: Path, place: str) -> None:
    """Check that a path is a file, or a folder none of whose links leads out of ``root``.

    Raises:
        SourceError: It is neither, or one does.
    """
    if path.is_dir():
        for link in (entry for entry in path.iterdir() if entry.is_symlink()):
            resolve_inside(source, link, root, place)
    elif not path.is_file():
        raise SourceError(source, "is neither a file nor a folder")

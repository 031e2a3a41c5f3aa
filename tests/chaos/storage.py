"""Storage: what may lie in the server's folders of files, and what must not."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.place import STORED_BYTES, Place

_WHOLE = re.compile(r"([0-9a-f]{64})(-[0-9a-f]{16})?")
_PART = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{32})?\.part")
_COPY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}-([0-9a-f]{64})")


def leftovers(place: Place) -> Iterator[str]:
    """Say what lies there that is neither a file, nor a part for which somebody may call again."""
    for folder, patterns in ((place.uploads, (_WHOLE, _PART)), (place.fetched, (_COPY,))):
        for path in folder.glob("[!.]*"):  # all but the lock
            if not any(pattern.fullmatch(path.name) for pattern in patterns):
                yield f"{folder.name}/{path.name} was left behind"
        if (num_bytes := _size(folder)) > STORED_BYTES:
            yield f"{folder.name} takes {num_bytes} bytes of {STORED_BYTES}"


def half_files(place: Place) -> Iterator[str]:
    """Say which files are not what their names say."""
    for folder, pattern in ((place.uploads, _WHOLE), (place.fetched, _COPY)):
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is not None and match[1] not in _digests(path):
                yield f"{folder.name}/{path.name} holds something else"


def _digests(folder: Path) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

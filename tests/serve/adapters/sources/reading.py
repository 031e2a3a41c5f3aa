"""What the tests of remote sources read, and what is kept of it."""

import asyncio
import hashlib
from pathlib import Path

from lokr_serve.adapters.sources.remote import RemoteSource


async def read(remote: RemoteSource, source: str, digest: str | None = None) -> bytes:
    """Return the bytes of the tensor file that a source stands for."""
    async with remote.held(source, digest) as located:
        content = await asyncio.to_thread(located.path.read_bytes)
        assert located.digest == hashlib.sha256(content).hexdigest()
        return content


def copies(tmp_path: Path) -> list[str]:
    """Return what lies in the folder of copies beside its lock."""
    return sorted(path.name for path in (tmp_path / "fetched").glob("[!.]*"))

"""Certificates for tests, as files, and the way Kubernetes changes files."""

from dataclasses import dataclass
from pathlib import Path

import trustme

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its key, PEM."""

    chain: bytes
    private_key: bytes


def issue(authority: trustme.CA, *identities: str, common_name: str | None = None) -> Pair:
    """Return a new certificate of an authority."""
    leaf = authority.issue_cert(*identities, common_name=common_name)
    return Pair(
        chain=b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
        private_key=leaf.private_key_pem.bytes(),
    )


def mount(folder: Path, version: str, **contents: bytes) -> None:
    """Put files into a folder as Kubernetes does: behind one link that is swapped.

    Args:
        folder: Where they are seen, by the names of their keywords.
        version: Another one for each change.
        contents: By name.
    """
    target = folder / f"..{version}"
    target.mkdir(parents=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..new").symlink_to(target.name)
    (folder / "..new").rename(folder / "..data")

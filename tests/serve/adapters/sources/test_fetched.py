"""How copies of remote files are put in their place."""

import errno
from collections.abc import Generator
from pathlib import Path

import pytest

from lokr_serve.adapters.sources.fetched import CopyKey, FetchedFiles, Incoming

NAME = "x.safetensors"
KEY = CopyKey(uri="s3://bucket/x", state="ETag=1")


@pytest.fixture
def fetched(tmp_path: Path) -> FetchedFiles:
    """A folder of copies."""
    files = FetchedFiles(tmp_path, max_bytes=1000)
    files.open()
    return files


def incoming(content: bytes) -> Incoming:
    """Return a file that comes in one piece."""

    def chunks() -> Generator[bytes, None, None]:
        yield content

    return Incoming(num_bytes=len(content), chunks=chunks())


def test_a_copy_that_another_fetch_has_put_there_is_taken(
    fetched: FetchedFiles, tmp_path: Path
) -> None:
    """A thread that a store held up may bring a copy long after somebody else has."""
    first, second = (fetched.store(KEY, {NAME: incoming(b"abc")}, NAME) for _ in range(2))
    fetched.release(first)
    fetched.drop(first)  # the second holds it still
    kept = [path.name for path in tmp_path.glob("[!.]*")]
    fetched.release(second)
    fetched.drop(second)

    assert first == second
    assert kept == [first]
    assert not list(tmp_path.glob("[!.]*"))


def test_a_copy_that_cannot_be_put_there_is_held_by_nobody(
    fetched: FetchedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held never makes way for others."""

    def fail(path: Path, target: Path) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="broken"):
            fetched.store(KEY, {NAME: incoming(b"abc")}, NAME)
    left = list(tmp_path.glob("[!.]*"))
    name = fetched.store(KEY, {NAME: incoming(b"abc")}, NAME)
    fetched.release(name)
    fetched.drop(name)

    assert not left
    assert not list(tmp_path.glob("[!.]*"))

"""Which kind of source a text names, and what is said when the server has none of that kind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lokr_serve.adapters.sources import AnnouncedFile, Sources
from lokr_serve.adapters.workers import Workers
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import NotServedError, SettingsError, SourceError, StorageFullError
from lokr_serve.metrics import Metrics

DIGEST = "ab" * 32


@pytest_asyncio.fixture
async def workers() -> AsyncIterator[Workers]:
    """Where files are looked for."""
    workers = Workers(1)
    yield workers
    await workers.close()


def make_sources(workers: Workers, **fields: object) -> Sources:
    """Return sources by these settings."""
    settings = AdapterSettings.model_validate(fields)
    return Sources(settings=settings, workers=workers, metrics=Metrics(version="test"))


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        ("poet", "adapters.directory"),
        (f"upload:{DIGEST}", "adapters.uploads"),
        ("hf://org/name", "adapters.hub"),
        ("s3://bucket/a", "adapters.remote"),
        ("file:///etc/passwd", "adapters.remote"),
    ],
)
async def test_a_server_says_which_setting_it_lacks(
    workers: Workers, source: str, setting: str
) -> None:
    """Every kind is off until the operator has said where it is."""
    sources = make_sources(workers)
    await sources.open()

    with pytest.raises(SourceError, match=setting) as caught:
        async with sources.held(source, None):
            pass
    sources.retain(source)
    sources.release(source)
    await sources.close()

    assert caught.value.source == source


@pytest.mark.parametrize("key", ["", "x", DIGEST.upper(), f"../{DIGEST}", f"{DIGEST}-1", "a/b"])
async def test_an_upload_is_named_by_its_key_alone(
    workers: Workers, tmp_path: Path, key: str
) -> None:
    """A key is no path."""
    sources = make_sources(workers, uploads=tmp_path / "uploads")
    await sources.open()

    with pytest.raises(SourceError, match="upload:<key>"):
        async with sources.held(f"upload:{key}", None):
            pass
    with pytest.raises(SourceError, match="upload it again"):
        async with sources.held(f"upload:{DIGEST}", None):
            pass
    await sources.close()


async def test_uploads_are_bounded_together(workers: Workers, tmp_path: Path) -> None:
    """Room is taken for all of a file before its first byte comes."""
    sources = make_sources(workers, uploads=tmp_path / "uploads", upload_bytes=100)
    await sources.open()
    first, second = (AnnouncedFile(digest=digit * 64, num_bytes=60, config=None) for digit in "ab")
    async with sources.uploads().receive(first):
        with pytest.raises(StorageFullError, match=r"adapters\.upload_bytes"):
            async with sources.uploads().receive(second):
                pass
    async with sources.uploads().receive(second) as upload:
        await upload.write(b"x" * 50)
    async with sources.uploads().receive(first) as upload:
        assert upload.offset == 0
    await sources.close()

    assert not (tmp_path / "uploads" / f"{second.digest}.part").exists()  # made way


async def test_uploads_are_refused_without_a_folder(workers: Workers) -> None:
    """As a method that this server does not have."""
    with pytest.raises(NotServedError, match=r"adapters\.uploads"):
        make_sources(workers).uploads()


async def test_remote_stores_need_a_folder_for_copies(workers: Workers) -> None:
    """The start says so, not the first load."""
    with pytest.raises(ValueError, match="remote needs fetched"):
        make_sources(workers, remote=("s3://bucket/a",))
    with pytest.raises(SettingsError, match="no plain URI"):
        make_sources(workers, remote=("bucket",), fetched="/tmp/fetched")

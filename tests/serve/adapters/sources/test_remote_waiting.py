"""Who waits for a remote source: in vain, or no longer."""

import asyncio
import hashlib
import threading
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from lokr_serve.adapters.sources.deadline import Deadline
from lokr_serve.adapters.sources.driver import Driver, RemoteFile
from lokr_serve.adapters.sources.fetched import FetchedFiles
from lokr_serve.adapters.sources.remote import RemoteSource
from lokr_serve.adapters.sources.uris import Uri
from lokr_serve.errors import SourceUnavailableError
from tests.serve.adapters.sources.conftest import MakeRemote
from tests.serve.adapters.sources.reading import copies, read

ROOT = "memory://bucket/ok"
MEMORY = "/bucket/ok"
WAIT_SECONDS = 30


async def problem(remote: RemoteSource, source: str) -> str:
    """Return why a source cannot be had."""
    with pytest.raises(SourceUnavailableError) as caught:
        await read(remote, source)
    return str(caught.value)


async def test_a_source_that_only_waited_for_a_slot_has_not_failed(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be left alone for minutes because others were slow."""
    slow, quick = f"{ROOT}/slow.safetensors", f"{ROOT}/quick.safetensors"
    memory.pipe(f"{MEMORY}/quick.safetensors", b"quick")
    remote = make_remote(max_fetches=1, fetch_seconds=1.0, retry_seconds=600.0)
    asked, is_asked, go_on = list[str](), threading.Event(), threading.Event()
    find = Driver.find

    def find_slowly(driver: Driver, uri: Uri, deadline: Deadline) -> RemoteFile:
        asked.append(str(uri))
        is_asked.set()
        assert go_on.wait(WAIT_SECONDS)
        return find(driver, uri, deadline)

    monkeypatch.setattr(Driver, "find", find_slowly)
    first = asyncio.create_task(problem(remote, slow))
    assert await asyncio.to_thread(is_asked.wait, WAIT_SECONDS)
    told = [await problem(remote, quick), await first, await problem(remote, slow)]
    go_on.set()
    async with asyncio.timeout(WAIT_SECONDS):
        while quick not in asked:
            with suppress(SourceUnavailableError):
                await read(remote, quick)

    assert "was not asked for within 1 s" in told[0]
    assert "adapters.max_fetches" in told[0]
    assert "did not come within 1 s" in told[1]
    assert "did not come within 1 s" in told[2]
    assert asked.count(slow) == 1


async def test_who_leaves_while_a_copy_is_looked_for_holds_none(
    make_remote: MakeRemote,
    memory: fsspec.AbstractFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A copy that is held for nobody could never make way for another."""
    for name in "ab":
        memory.pipe(f"{MEMORY}/{name}.safetensors", name.encode() * 3000)
    remote, source = make_remote(fetched_bytes=5000), f"{ROOT}/a.safetensors"
    digest = hashlib.sha256(b"a" * 3000).hexdigest()
    await read(remote, source, digest)
    has_taken, go_on, take_digest = threading.Event(), threading.Event(), FetchedFiles.take_digest

    def take_slowly(fetched: FetchedFiles, uri: str, digest: str) -> str | None:
        name = take_digest(fetched, uri, digest)
        has_taken.set()
        assert go_on.wait(WAIT_SECONDS)
        return name

    with monkeypatch.context() as patch:
        patch.setattr(FetchedFiles, "take_digest", take_slowly)
        reading = asyncio.create_task(read(remote, source, digest))
        assert await asyncio.to_thread(has_taken.wait, WAIT_SECONDS)
        reading.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await reading

    assert await read(remote, f"{ROOT}/b.safetensors") == b"b" * 3000
    assert len(copies(tmp_path)) == 1

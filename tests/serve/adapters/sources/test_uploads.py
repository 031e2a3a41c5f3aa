"""Uploads whose calls are cancelled while a thread works for them."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from lokr_serve.adapters.sources.shelf import AnnouncedFile, Shelf
from lokr_serve.adapters.sources.stored_file import StoredFile
from lokr_serve.adapters.sources.uploads import Uploads

CONTENT = b"x" * 1000
FILE = AnnouncedFile(digest=hashlib.sha256(CONTENT).hexdigest(), num_bytes=len(CONTENT))
WAIT_SECONDS = 10


class Gate:
    """Holds up a function in a thread until it is let through."""

    def __init__(self) -> None:
        self._has_come = threading.Event()
        self._may_pass = threading.Event()

    def pass_through(self) -> None:
        """Come, and wait."""
        self._has_come.set()
        assert self._may_pass.wait(WAIT_SECONDS)

    async def cancel_behind(self, task: asyncio.Task[None]) -> None:
        """Cancel a task while its thread waits here, then let the thread through."""
        assert await asyncio.to_thread(self._has_come.wait, WAIT_SECONDS)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, self._may_pass.set)
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest_asyncio.fixture
async def uploads(tmp_path: Path) -> AsyncIterator[Uploads]:
    """Room for one file."""
    uploads = Uploads(tmp_path, max_bytes=len(CONTENT), max_file_bytes=len(CONTENT))
    uploads.open()
    yield uploads
    await uploads.close()


async def send(uploads: Uploads, content: bytes) -> int:
    """Send what is wanted of a file, and return how much was there before."""
    file = AnnouncedFile(digest=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
    async with uploads.receive(file) as upload:
        await upload.write(content[upload.offset :])
        await upload.finish()
        return upload.offset


async def send_half(uploads: Uploads) -> None:
    """Send the first half of the file."""
    async with uploads.receive(FILE) as upload:
        await upload.write(CONTENT[: len(CONTENT) // 2])


def open_files(folder: Path) -> list[str]:
    """Return what this process has open under a folder."""
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            targets.append(str(entry.readlink()))
    return [target for target in targets if target.startswith(str(folder))]


async def test_a_call_that_leaves_while_its_file_is_opened_keeps_nothing(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor, and the room that was reserved for it, would be lost until a restart."""
    gate, opened, open_part = Gate(), threading.Event(), Shelf.open_part

    def open_and_tell(shelf: Shelf, file: AnnouncedFile) -> StoredFile:
        part = open_part(shelf, file)
        opened.set()
        return part

    monkeypatch.setattr(Shelf, "discard", lambda *_: gate.pass_through())  # the step before
    monkeypatch.setattr(Shelf, "open_part", open_and_tell)
    await gate.cancel_behind(asyncio.create_task(send_half(uploads)))
    monkeypatch.undo()
    assert await asyncio.to_thread(opened.wait, WAIT_SECONDS)

    assert open_files(tmp_path) == []
    assert await send(uploads, b"y" * len(CONTENT)) == 0


async def test_a_call_that_leaves_while_a_chunk_is_written_keeps_what_came(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the file closed under the write, the bytes could go to whatever is opened next."""
    gate, append = Gate(), StoredFile.append

    def slow(file: StoredFile, chunk: bytes) -> None:
        gate.pass_through()
        append(file, chunk)

    monkeypatch.setattr(StoredFile, "append", slow)
    await gate.cancel_behind(asyncio.create_task(send_half(uploads)))
    monkeypatch.undo()

    assert open_files(tmp_path) == []
    assert await send(uploads, CONTENT) == len(CONTENT) // 2

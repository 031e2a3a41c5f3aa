"""Uploads whose calls are cancelled while a thread works, and those of files that others sent."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from lokr_core.formats.locate import TENSORS_NAME
from lokr_serve.adapters.sources.room import LOCK_NAME
from lokr_serve.adapters.sources.shelf import AnnouncedFile, Shelf
from lokr_serve.adapters.sources.stored_file import StoredFile
from lokr_serve.adapters.sources.uploads import Uploads
from lokr_serve.errors import DigestMismatchError, UploadBusyError, UploadError

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


@pytest_asyncio.fixture
async def roomy(tmp_path: Path) -> AsyncIterator[Uploads]:
    """Room for the file, and for what two clients send of it."""
    uploads = Uploads(tmp_path, max_bytes=3 * len(CONTENT), max_file_bytes=len(CONTENT))
    uploads.open()
    yield uploads
    await uploads.close()


async def send(uploads: Uploads, content: bytes, owner: str = "") -> int:
    """Send what is wanted of a file, register it, and return how much was there before."""
    digest = hashlib.sha256(content).hexdigest()
    file = AnnouncedFile(digest=digest, num_bytes=len(content), owner=owner)
    async with uploads.receive(file) as upload:
        if upload.offset < len(content):
            await upload.write(content[upload.offset :])
        await upload.finish()
        uploads.retain(file.source)
        return upload.offset


async def send_half(uploads: Uploads, owner: str = "") -> None:
    """Send the first half of the file."""
    async with uploads.receive(replace(FILE, owner=owner)) as upload:
        await upload.write(CONTENT[: len(CONTENT) // 2])


async def claim(uploads: Uploads, content: bytes) -> None:
    """Send bytes, as another client, that are said to be the file."""
    async with uploads.receive(replace(FILE, owner="b")) as upload:
        await upload.write(content)
        await upload.finish()


def stored(folder: Path) -> list[str]:
    """Return what lies in the folder of uploads, but its lock and who has sent what."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("[!.]*"))
    return sorted(path for path in paths if "sent-by-" not in path)


def open_files(folder: Path) -> list[str]:
    """Return what this process has open under a folder, but its lock."""
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            targets.append(entry.readlink())
    found = [target for target in targets if target.is_relative_to(folder)]
    return [target.name for target in found if target.name != LOCK_NAME]


async def test_a_call_that_leaves_while_its_file_is_opened_keeps_nothing(
    uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor, and the room that was reserved for it, would be lost until a restart."""
    gate, opened, open_part = Gate(), threading.Event(), Shelf.open_part

    def open_and_tell(shelf: Shelf, file: AnnouncedFile) -> StoredFile:
        part = open_part(shelf, file)
        opened.set()
        return part

    monkeypatch.setattr(Shelf, "has_come", lambda *_: gate.pass_through())  # the step before
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


async def test_a_file_that_another_has_sent_must_come_whole_and_is_stored_once(
    roomy: Uploads, tmp_path: Path
) -> None:
    """Whoever knows the digest and the size of a file does not have the file."""
    offsets = [await send(roomy, CONTENT, owner) for owner in ("a", "b", "", "a", "b", "")]

    assert offsets == [0, 0, 0, len(CONTENT), len(CONTENT), len(CONTENT)]
    assert stored(tmp_path) == [FILE.key, f"{FILE.key}/{TENSORS_NAME}"]


async def test_what_broke_off_goes_on_for_its_sender_alone_also_after_a_restart(
    roomy: Uploads, tmp_path: Path
) -> None:
    """Else the last byte of a file, which can be guessed, would do to register all of it."""
    await send_half(roomy, "a")
    await roomy.close()
    anew = Uploads(tmp_path, max_bytes=3 * len(CONTENT), max_file_bytes=len(CONTENT))
    anew.open()

    assert await send(anew, CONTENT, "b") == 0
    assert await send(anew, CONTENT, "a") == len(CONTENT) // 2
    await anew.close()


async def test_bytes_that_only_claim_to_be_anothers_file_harm_it_not(
    roomy: Uploads, tmp_path: Path
) -> None:
    """Neither what is stored, though no id uses it since a restart, nor what is on its way."""
    await send(roomy, CONTENT, "a")
    await roomy.close()
    anew = Uploads(tmp_path, max_bytes=3 * len(CONTENT), max_file_bytes=len(CONTENT))
    anew.open()

    with pytest.raises(DigestMismatchError):
        await claim(anew, b"y" * len(CONTENT))
    with pytest.raises(UploadError, match="only 1 of"):
        await claim(anew, CONTENT[-1:])

    assert await send(anew, CONTENT, "a") == len(CONTENT)
    await anew.close()


async def test_what_one_sends_in_vain_stays_another_s(roomy: Uploads, tmp_path: Path) -> None:
    """A load that fails is no reason to ask another client for its file again."""
    await send(roomy, CONTENT, "a")
    await roomy.close()
    anew = Uploads(tmp_path, max_bytes=3 * len(CONTENT), max_file_bytes=len(CONTENT))
    anew.open()

    await claim(anew, CONTENT)  # by b, who registers nothing

    assert await send(anew, CONTENT, "b") == 0
    assert await send(anew, CONTENT, "a") == len(CONTENT)
    await anew.close()


async def test_what_the_only_sender_sends_in_vain_is_removed(
    roomy: Uploads, tmp_path: Path
) -> None:
    """It takes room that others want."""
    await claim(roomy, CONTENT)

    assert stored(tmp_path) == []


async def test_a_file_comes_from_two_clients_at_the_same_time(
    roomy: Uploads, tmp_path: Path
) -> None:
    """One who knows a digest must not keep the other from sending it; one's own two would mix."""
    files = [replace(FILE, owner=owner) for owner in "ab"]
    async with roomy.receive(files[0]) as first, roomy.receive(files[1]) as second:
        with pytest.raises(UploadBusyError):
            await send(roomy, CONTENT, "a")
        for upload in (first, second):
            await upload.write(CONTENT)
        await asyncio.gather(first.finish(), second.finish())
        there = stored(tmp_path)

    assert there == [FILE.key, f"{FILE.key}/{TENSORS_NAME}"]
    assert upload.has_come


async def test_a_spoilt_file_is_repaired_by_whoever_sends_it(
    roomy: Uploads, tmp_path: Path
) -> None:
    """What arrives is compared with what is there, not with what its name says."""
    await send(roomy, CONTENT, "a")
    file = tmp_path / FILE.key / TENSORS_NAME
    file.write_bytes(b"y" * len(CONTENT))

    assert await send(roomy, CONTENT, "b") == 0
    assert file.read_bytes() == CONTENT
    assert await send(roomy, CONTENT, "b") == len(CONTENT)
    assert await send(roomy, CONTENT, "a") == 0

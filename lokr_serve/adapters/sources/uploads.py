"""Uploads: the files that clients have sent, each stored once however many ids use it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from lokr_serve.adapters.sources.located import Located
from lokr_serve.adapters.sources.room import Room, storing
from lokr_serve.adapters.sources.shelf import SCHEME, AnnouncedFile, Shelf, is_entry, is_key
from lokr_serve.adapters.sources.stored_file import StoredFile
from lokr_serve.adapters.workers import Workers, whole
from lokr_serve.errors import (
    DigestMismatchError,
    InvalidRequestError,
    ShuttingDownError,
    SourceError,
    UploadBusyError,
    UploadError,
)

logger = logging.getLogger(__name__)

SETTING = "adapters.upload_bytes"
NUM_THREADS = 4  # that write; apart from those that load


class Upload:
    """One file on its way; used by one call, which may be cancelled at any time.

    What a thread does with the file is waited for all the same, so that it is not closed meanwhile.
    """

    def __init__(
        self,
        file: AnnouncedFile,
        shelf: Shelf,
        room: Room,
        workers: Workers,
        turn: asyncio.Lock,
    ) -> None:
        """Bind what is announced; ``turn`` is shared by all who send a file of this key."""
        self._file = file
        self._shelf = shelf
        self._room = room
        self._workers = workers
        self._turn = turn
        self._part: StoredFile | None = None  # none if the owner has sent all of the file before
        self.offset = 0  # of the first byte wanted
        self.has_come = False  # whether the owner has sent all of it, now or before
        self._num_bytes = 0

    async def open(self) -> None:
        """Look what its owner has sent of the file before, and make room for the rest.

        Raises:
            StorageFullError: There is none.
        """
        async with self._turn:
            await whole(self._workers.submit(self._open))

    async def write(self, chunk: bytes) -> None:
        """Append the next bytes.

        Raises:
            UploadError: They are more than was announced; what was there is dropped.
            StorageFullError: The disk is full; what was there is dropped.
        """
        self._num_bytes += len(chunk)
        if self._num_bytes > self._file.num_bytes:
            await self._drop()
            raise UploadError(
                f"more bytes came than the {self._file.num_bytes} announced; the server held "
                f"{self.offset} of them already, and said so before the first chunk"
            )
        assert self._part is not None
        await self._hash_what_was_there(self._part)
        with storing(SETTING):
            await self._or_drop(partial(self._part.append, chunk))

    async def finish(self) -> None:
        """Check the file, and put it in its place.

        Raises:
            UploadError: Bytes are missing; what came is kept.
            DigestMismatchError: Its content is not what was announced; it is dropped.
            StorageFullError: The disk is full; it is dropped.
        """
        if self._num_bytes < self._file.num_bytes:
            raise UploadError(
                f"only {self._num_bytes} of the {self._file.num_bytes} bytes announced came; "
                "call again to send the rest"
            )
        if self._part is None:
            return
        await self._hash_what_was_there(self._part)
        found = self._part.digest()
        if found != self._file.digest:
            await self._drop()
            raise DigestMismatchError(self._file.source, expected=self._file.digest, found=found)
        with storing(SETTING):
            async with self._turn:
                await self._or_drop(partial(self._shelf.complete, self._file, self._part))
        self.has_come = True

    async def close(self) -> None:
        """Close the file; what came of it stays."""
        if self._part is not None:
            await whole(self._workers.submit(self._part.close))

    def _open(self) -> None:
        if self._shelf.has_come(self._file):
            if self._shelf.holds(self._file):
                self.offset = self._num_bytes = self._file.num_bytes
                self.has_come = True
                return
            self._shelf.discard(self._file.key)
        size = self._file.num_bytes + len(self._file.config or b"")
        self._room.reserve(self._file.part_name, size)
        with storing(SETTING):
            self._part = self._shelf.open_part(self._file)
        self.offset = self._num_bytes = self._part.num_bytes

    async def _hash_what_was_there(self, part: StoredFile) -> None:
        while not part.is_hashed:
            await whole(self._workers.submit(part.hash_block))

    async def _or_drop(self, change: "partial[None]") -> None:
        try:
            await whole(self._workers.submit(change))
        except OSError:
            await self._drop()
            raise

    async def _drop(self) -> None:
        if self._part is not None:
            await whole(self._workers.submit(self._part.remove))


class Uploads:
    """Receives files, finds them again, and removes those that nothing uses any more.

    Lives on the event loop; files are written in threads of its own. A whole file that nothing
    uses, as after a restart, is kept as long as there is room, so that it need not come again.
    """

    def __init__(self, root: Path, *, max_bytes: int, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._shelf = Shelf(root)
        self._room = Room(
            root,
            max_bytes=max_bytes,
            setting=SETTING,
            root_setting="adapters.uploads",
            is_entry=is_entry,
        )
        self._workers = Workers(NUM_THREADS)
        self._receiving: set[str] = set()  # names of parts
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by key

    def open(self) -> None:
        """Make the folder, and clear up what a crash left; blocks.

        Raises:
            SettingsError: The folder cannot be made, or another server has it.
        """
        self._room.open()
        self._shelf.recover()

    def receive(self, file: AnnouncedFile) -> AbstractAsyncContextManager[Upload]:
        """Receive a file in the block, and keep it there until the block ends.

        It stays if an id uses it by then, or if the block was cancelled: the client may call
        again. A file that is not whole stays as a part for the next call of its owner. What
        others have sent stays in any case.

        Raises:
            InvalidRequestError: It is larger than any file may be.
            UploadBusyError: Another call of its owner receives a file of this digest.
            StorageFullError: There is no room for it.
        """
        if file.num_bytes > self._max_file_bytes:
            raise InvalidRequestError(
                "header.size_bytes",
                f"{file.num_bytes} bytes are more than the server's adapters.max_file_bytes, "
                f"{self._max_file_bytes}",
            )
        return self._receive(file)

    @asynccontextmanager
    async def _receive(self, file: AnnouncedFile) -> AsyncIterator[Upload]:
        if file.part_name in self._receiving:
            raise UploadBusyError(file.digest)
        self._receiving.add(file.part_name)
        self._room.hold(file.key)
        turn = self._turns.setdefault(file.key, asyncio.Lock())
        upload = Upload(file, self._shelf, self._room, self._workers, turn)
        is_wanted = False
        try:
            try:
                await upload.open()
                yield upload
            finally:
                await upload.close()
        except (asyncio.CancelledError, ShuttingDownError):
            is_wanted = True
            raise
        finally:
            self._receiving.remove(file.part_name)
            self._room.unreserve(file.part_name)
            is_unused = self._room.release(file.key)
            if is_unused and upload.has_come and not is_wanted:
                async with turn:
                    await self._workers.submit(partial(self._forget, file))

    def _forget(self, file: AnnouncedFile) -> None:
        """Remove a file that its owner has sent in vain, unless others have sent it, too."""
        if self._shelf.forget_sender(file):
            self._room.remove(file.key)

    @asynccontextmanager
    async def held(self, source: str, digest: str | None) -> AsyncIterator[Located]:
        """Yield the file of an upload; see :class:`Source`."""
        key = source.removeprefix(SCHEME)
        if not is_key(key):
            raise SourceError(source, "is not of the form upload:<key>, as an upload gives it")
        self._room.hold(key)
        try:
            path = await self._workers.submit(partial(self._shelf.tensors, key))
            if path is None:
                raise SourceError(source, "is not there any more; upload it again")
            yield Located(path=path, digest=key.partition("-")[0])
        finally:
            self._room.release(key)

    def retain(self, source: str) -> None:
        """Note that an id uses an upload."""
        self._room.hold(source.removeprefix(SCHEME))

    def release(self, source: str) -> None:
        """Note that an id uses an upload no more; nobody's upload is removed soon after."""
        key = source.removeprefix(SCHEME)
        if self._room.release(key):
            removal = self._workers.submit(partial(self._room.remove, key))
            removal.add_done_callback(_log_failure)

    async def close(self) -> None:
        """Wait for the threads, and leave the folder to others."""
        await self._workers.close()
        self._room.close()


def _log_failure(removal: asyncio.Future[bool]) -> None:
    if not removal.cancelled() and (error := removal.exception()) is not None:
        logger.error("an upload could not be removed", exc_info=error)

"""Proxy: a way to the store that is slow, breaks off, or brings something else."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

BLOCK_BYTES = 4096
SLOW_SECONDS = 0.05  # for a block
STALL_SECONDS = 3600.0  # longer than anybody waits
UNLUCKY_SHARE = 0.4  # of the blocks of an answer
PINNED = b"/pinned/"  # in a path: its content is known to who asks, and may come changed


class Mood(Enum):
    """What becomes of a connection."""

    FINE = "fine"
    SLOW = "slow"
    STALLS = "stalls"
    CUTS = "cuts"
    NOISE = "noise"
    CHANGES = "changes"  # a byte near the end, of a file whose digest is known
    REFUSES = "refuses"


class Proxy:
    """Passes connections on to a store, as its mood has it when they come."""

    def __init__(self, target: str, seed: int) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._draws = random.Random(seed)
        self.mood = Mood.FINE
        self.address = ""
        self._connections: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Listen on a free port while the block runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if self.mood is not Mood.REFUSES:
                await self._pass(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one side has gone, or the run has come to its end
        finally:
            self._connections.discard(connection)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_connection(self._host, self._port)
        asked = bytearray()
        asking = asyncio.create_task(_copy(reader, store_writer, asked))
        try:
            while block := await store_reader.read(BLOCK_BYTES):
                if not await self._answer(block, bytes(asked), writer):
                    return
        finally:
            asking.cancel()
            store_writer.transport.abort()

    async def _answer(self, block: bytes, asked: bytes, writer: asyncio.StreamWriter) -> bool:
        """Pass a block of an answer on; whether more may follow."""
        is_unlucky = self._draws.random() < UNLUCKY_SHARE
        is_head, is_known = block.startswith(b"HTTP/"), _is_for_known_file(asked)
        match self.mood:
            case Mood.SLOW:
                await asyncio.sleep(SLOW_SECONDS)
            case Mood.STALLS if is_unlucky:
                await asyncio.sleep(STALL_SECONDS)
            case Mood.CUTS if is_unlucky:
                writer.write(block[: len(block) // 2])
                return False
            case Mood.NOISE if is_unlucky and (is_head or is_known):
                block = self._draws.randbytes(len(block))
            case Mood.CHANGES if is_known and not is_head:
                block = block[:-1] + bytes([block[-1] ^ 1])
        writer.write(block)
        await writer.drain()
        return True


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, last: bytearray
) -> None:
    """Pass requests on, and keep the last one."""
    with suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            last[:] = block
            writer.write(block)
            await writer.drain()


def _is_for_known_file(request: bytes) -> bool:
    line = request.partition(b"\r\n")[0]
    return line.startswith(b"GET ") and PINNED in line and b".safetensors" in line

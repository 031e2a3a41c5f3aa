"""Intruders: connections to every port that say nothing, or nothing that makes sense."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from tests.chaos.round import LEFT, Round

NUM_IDLE = 100  # connections that are opened together
READ_SECONDS = 0.5
GAP_SECONDS = 0.1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\x04" + bytes(5)
HUGE_HEADERS = b"\xff\xff\xff\x01\x04" + b"\x00\x00\x00\x01"  # announces 16 MiB
ENDLESS_HEADERS = b"\x00\x40\x00\x01\x00\x00\x00\x00\x01" + bytes(0x4000)  # without their end


async def babble(round_: Round) -> None:
    """Send garbage of many kinds to every port."""
    while not round_.over.is_set():
        address = round_.draws.choice(_addresses(round_))
        noise = round_.draws.randbytes(round_.draws.randint(1, 4096))
        words: Sequence[bytes] = (
            noise,
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n" + noise,
            b"GET /" + b"x" * 100_000,
            PREFACE + noise,
            PREFACE + SETTINGS + HUGE_HEADERS + noise,
            PREFACE + SETTINGS + ENDLESS_HEADERS * 4,
        )
        await _say(round_, address, round_.draws.choice(words))
        await round_.pause(GAP_SECONDS)


async def crowd(round_: Round) -> None:
    """Open many connections at once, and hold them without a word, or with the first one."""
    while not round_.over.is_set():
        address = round_.draws.choice(_addresses(round_))
        word = round_.draws.choice([b"", PREFACE, PREFACE + SETTINGS])
        opened = await asyncio.gather(
            *(_open(address, word) for _ in range(NUM_IDLE)), return_exceptions=True
        )
        await round_.pause(READ_SECONDS)
        for writer in opened:
            if isinstance(writer, asyncio.StreamWriter):
                writer.close()
                round_.scene.ledger.count("crowd", LEFT)
            else:
                round_.scene.ledger.count("crowd", type(writer).__name__)


def _addresses(round_: Round) -> Sequence[str]:
    addresses = round_.life.addresses
    return (addresses.listen, addresses.admin_listen, addresses.metrics_listen)


async def _open(address: str, word: bytes) -> asyncio.StreamWriter:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(word)
    return writer


async def _say(round_: Round, address: str, word: bytes) -> None:
    """Say something, and listen for a while to what comes of it."""
    host, _, port = address.rpartition(":")
    end = "refused"
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(host, int(port))
        end = "closed by the server"
        try:
            writer.write(word)
            async with asyncio.timeout(READ_SECONDS):
                await writer.drain()
                await reader.read()
        except TimeoutError:
            end = LEFT
        finally:
            writer.close()
    round_.scene.ledger.count("babble", end)

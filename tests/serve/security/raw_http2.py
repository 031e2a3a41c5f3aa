"""HTTP/2 by hand, for what no client of grpc would send."""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x1, 0x3, 0x4, 0x6, 0x7
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4  # flags; ACK is of SETTINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame that came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: bytes, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the headers of a call, as literals without compression."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    )
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)


def call(path: bytes, more: Sequence[tuple[bytes, bytes]] = (), *, stream: int = 1) -> bytes:
    """Return a call without a message."""
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, headers(path, more))


def _text(value: bytes) -> bytes:
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, length = len(value) - 127, [127]
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes([*length, rest]) + value


def frames(opened: socket.socket) -> Iterator[Frame]:
    """Yield the frames that come, until the connection ends."""
    with opened.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            length = int.from_bytes(head[:3])
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            yield Frame(kind=kind, flags=flags, stream=stream, payload=file.read(length))


@contextmanager
def connection(address: str, timeout_seconds: float = 10) -> Iterator[socket.socket]:
    """Open a connection to HOST:PORT, without TLS."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout_seconds) as opened:
        yield opened


def read_to_end(opened: socket.socket) -> bytes:
    """Return what the server sends until it closes, or is silent for the connection's timeout."""
    received = b""
    try:
        while more := opened.recv(65536):
            received += more
    except TimeoutError:
        pass
    except ConnectionResetError:
        pass
    return received

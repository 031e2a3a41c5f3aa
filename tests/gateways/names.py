"""A name server that knows the replicas, as a cluster's does for a headless Service."""

import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_HEADER = struct.Struct("!6H")  # id, flags, number of questions, and of three kinds of records
_QUESTION_TAIL = struct.Struct("!2H")  # type and class
_RECORD = struct.Struct("!3HIH4s")  # name, type, class, seconds to live, length, IPv4 address
_IS_ANSWER = 0x8580  # with authority, no error
_QUESTION_NAME = 0xC00C  # a pointer to the name that was asked
_TYPE_A, _CLASS_IN, _LIVE_SECONDS = 1, 1, 1


class NameServer(socketserver.UDPServer):
    """Answers every name with the same addresses, which may be changed."""

    def __init__(self, host: str, hosts: Sequence[str]) -> None:
        """Take a free port of ``host``."""
        super().__init__((host, 0), _Query)
        self.hosts = tuple(hosts)

    @property
    def address(self) -> str:
        """Where it answers, HOST:PORT."""
        host, port = self.socket.getsockname()
        return f"{host}:{port}"

    def answer(self, query: bytes) -> bytes:
        """Return the reply to a query for IPv4 addresses; to others it has no record."""
        number, *_ = _HEADER.unpack_from(query)
        tail_begin = query.index(b"\0", _HEADER.size) + 1
        kind, _ = _QUESTION_TAIL.unpack_from(query, tail_begin)
        question = query[_HEADER.size : tail_begin + _QUESTION_TAIL.size]
        records = [_record(host) for host in self.hosts if kind == _TYPE_A]
        head = _HEADER.pack(number, _IS_ANSWER, 1, len(records), 0, 0)
        return head + question + b"".join(records)


class _Query(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, NameServer)
        self.wfile.write(self.server.answer(self.packet))


def _record(host: str) -> bytes:
    data = bytes(map(int, host.split(".")))
    return _RECORD.pack(_QUESTION_NAME, _TYPE_A, _CLASS_IN, _LIVE_SECONDS, len(data), data)


@contextmanager
def name_server(host: str, hosts: Sequence[str]) -> Iterator[NameServer]:
    """Answer on a port of ``host`` until the block ends."""
    with NameServer(host, hosts) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="names")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

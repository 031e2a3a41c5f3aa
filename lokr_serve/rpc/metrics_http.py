"""The metrics port: Prometheus exposition and the probes ``/livez`` and ``/readyz``, over HTTP."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry

from lokr_serve.errors import SettingsError
from lokr_serve.metrics import Exposition
from lokr_serve.rpc.gate import Gate, ServingState

MAX_HEAD_BYTES = 16 * 1024
MAX_SECONDS = 5.0  # for a client to say what it wants, and to take it
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    status: HTTPStatus
    body: bytes
    content_type: str = TEXT

    def encode(self) -> bytes:
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + self.body


class MetricsServer:
    """Answers scrapes and probes on the event loop, where what they read lives."""

    def __init__(self, gate: Gate, registry: CollectorRegistry) -> None:
        self._gate = gate
        self._exposition = Exposition(registry)
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # connected now
        self._is_stopping = False

    async def start(self, address: str) -> str:
        """Listen on HOST:PORT, and return it with the port that was picked for port 0.

        Raises:
            SettingsError: The address cannot be bound.
        """
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._answer, host.strip("[]"), int(port), limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise SettingsError(f"server.metrics_listen: {address}: {error}") from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return f"{host}:{bound}"

    async def stop(self) -> None:
        """Stop listening, and hang up on whoever is still connected."""
        self._is_stopping = True
        if self._server is None:
            return
        self._server.close()
        for writer in self._clients.values():
            writer.transport.abort()
        await asyncio.gather(*self._clients)
        await self._server.wait_closed()  # for every client, from Python 3.12.1 on

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients[task] = writer
        try:
            if self._is_stopping:
                return
            async with asyncio.timeout(MAX_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                reply = await self._reply(head.decode("latin-1"))
                writer.write(reply.encode())
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that says nothing of use, or is gone, gets no answer
        finally:
            del self._clients[task]
            writer.close()

    async def _reply(self, head: str) -> _Reply:
        request_line, *lines = head.split("\r\n")
        method, _, rest = request_line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return _Reply(status=HTTPStatus.METHOD_NOT_ALLOWED, body=b"only GET is served here\n")
        match path:
            case "/metrics":
                return await self._metrics(_header(lines, "accept"))
            case "/livez":
                return self._probe(self._gate.state is not ServingState.FAILED)
            case "/readyz":
                return self._probe(self._gate.state is ServingState.SERVING)
            case _:
                return _Reply(status=HTTPStatus.NOT_FOUND, body=b"try /metrics\n")

    async def _metrics(self, accept: str) -> _Reply:
        body, content_type = await self._exposition.render(accept)
        return _Reply(status=HTTPStatus.OK, body=body, content_type=content_type)

    def _probe(self, holds: bool) -> _Reply:
        status = HTTPStatus.OK if holds else HTTPStatus.SERVICE_UNAVAILABLE
        return _Reply(status=status, body=f"{self._gate.state.value}\n".encode())


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""

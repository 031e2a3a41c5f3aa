"""A whole server in this process, on free ports, for tests that talk to it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc

from lokr_core import LokrError
from lokr_serve.app import Addresses, serve
from lokr_serve.client import Client
from lokr_serve.config import Settings
from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from lokr_serve.v1.images_pb2_grpc import ImageServiceStub
from lokr_serve.v1.text_pb2_grpc import TextServiceStub

READY_SECONDS = 60
MAX_POSITIONS = 8192  # of the served model, so that a stream lasts as long as a test needs it


def tiny_settings(model: Path, store: Path | None = None, /, **sections: object) -> Settings:
    """Return settings for a tiny model on free ports; sections override single values.

    Args:
        model: The model folder.
        store: The adapter folder.
        sections: Values by section, such as ``text={"max_rows": 2}``.
    """
    tree: dict[str, dict[str, object]] = {
        "model": {"path": model, "device": "cpu", "num_threads": 1},
        "server": {
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "drain_seconds": 10.0,
        },
        "adapters": {"directory": store, "max_loads": 2},
        "text": {"cache_tokens": 16384},
        "image": {},
    }
    for section, values in sections.items():
        assert isinstance(values, dict)
        tree.setdefault(section, {}).update(values)
    return Settings.model_validate(tree)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningServer:
    """A server on a thread of its own."""

    settings: Settings
    ready: Future[Addresses] = field(default_factory=Future)  # when it serves
    ended: Future[None] = field(default_factory=Future)  # when it is gone
    _stop: Future[Callable[[], object]] = field(default_factory=Future)

    def start(self) -> None:
        """Start it."""
        threading.Thread(target=self._run, name="server").start()

    def stop(self) -> None:
        """Tell it to stop, as a signal would."""
        self._stop.result(READY_SECONDS)()

    def _run(self) -> None:
        async def main() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._stop.set_result(partial(loop.call_soon_threadsafe, stop.set))
            await serve(self.settings, stop=stop, on_ready=self.ready.set_result)

        try:
            asyncio.run(main())
        except LokrError as error:
            self.ended.set_exception(error)
            if not self.ready.done():
                self.ready.set_exception(error)
        else:
            self.ended.set_result(None)


@contextmanager
def running_server(settings: Settings) -> Iterator[RunningServer]:
    """Run a server until the block ends, and check that it ended well."""
    server = RunningServer(settings=settings)
    server.start()
    server.ready.result(READY_SECONDS)
    try:
        yield server
    finally:
        if not server.ended.done():
            server.stop()
        server.ended.result(READY_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Connection:
    """Ways to talk to a running server, on its inference and its admin listener."""

    addresses: Addresses
    client: Client
    admin: Client
    text: TextServiceStub
    images: ImageServiceStub
    adapters: AdapterServiceStub


@contextmanager
def connected(addresses: Addresses) -> Iterator[Connection]:
    """Connect to a server, with the client library and with bare stubs."""
    with (
        Client(addresses.listen, timeout_seconds=60) as client,
        Client(addresses.admin_listen, timeout_seconds=60) as admin,
        grpc.insecure_channel(addresses.listen) as inference_channel,
        grpc.insecure_channel(addresses.admin_listen) as admin_channel,
    ):
        yield Connection(
            addresses=addresses,
            client=client,
            admin=admin,
            text=TextServiceStub(inference_channel),
            images=ImageServiceStub(inference_channel),
            adapters=AdapterServiceStub(admin_channel),
        )

"""The metrics port."""

import asyncio
import socket
from pathlib import Path

import pytest

from lokr_serve.errors import SettingsError
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.metrics_http import MAX_HEAD_BYTES, MAX_SECONDS, MetricsServer
from tests.serve.running import Connection, running_server, tiny_settings


def ask(address: str, request: bytes) -> tuple[str, str]:
    """Send raw bytes and return the head and the body of the answer."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as file:
            head, _, body = file.read().decode().partition("\r\n\r\n")
    return head, body


def get(address: str, path: str, headers: str = "") -> tuple[str, str]:
    """Get a path."""
    return ask(address, f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?verbose"])
def test_a_server_that_serves_is_alive_and_ready(shared_server: Connection, path: str) -> None:
    """Load balancers without gRPC look here."""
    head, body = get(shared_server.addresses.metrics_listen, path)

    assert head.startswith("HTTP/1.1 200 OK")
    assert "ready" in body


def test_a_scrape_has_every_family(shared_server: Connection) -> None:
    """Dashboards and gateways read these names."""
    shared_server.client.health()
    head, body = get(shared_server.addresses.metrics_listen, "/metrics")

    assert "Content-Type: text/plain" in head
    for name in (
        "grpc_server_handled_total",
        "lokr_serve_lora_requests_info",
        "lokr_serve_requests_running",
        "lokr_serve_adapter_bytes",
    ):
        assert f"\n{name}{{" in body or f"\n{name} " in body


def test_a_scraper_gets_the_form_it_asks_for(shared_server: Connection) -> None:
    """Prometheus asks for OpenMetrics."""
    head, body = get(
        shared_server.addresses.metrics_listen,
        "/metrics",
        "Accept: application/openmetrics-text; version=1.0.0\r\n",
    )

    assert "Content-Type: application/openmetrics-text" in head
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
    ],
)
def test_other_requests_are_refused(
    shared_server: Connection, request_: bytes, status: str
) -> None:
    """The port serves three paths and no more."""
    head, _ = ask(shared_server.addresses.metrics_listen, request_)

    assert head.startswith(f"HTTP/1.1 {status}")


@pytest.mark.parametrize("request_", [b"", b"GET /metrics", b"x" * (2 * MAX_HEAD_BYTES)])
def test_a_client_that_makes_no_sense_is_hung_up_on(
    shared_server: Connection, request_: bytes
) -> None:
    """It must not cost memory or a connection for long."""
    host, _, port = shared_server.addresses.metrics_listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b""

    assert answer == b""


@pytest.mark.parametrize("setting", ["listen", "admin_listen", "metrics_listen"])
def test_an_address_that_is_taken_stops_the_start(
    shared_server: Connection, model_folder: Path, setting: str
) -> None:
    """Two servers on one port would share its requests without a word."""
    taken = shared_server.addresses.listen
    settings = tiny_settings(model_folder, server={setting: taken})

    with pytest.raises(SettingsError, match=f"server.{setting}"), running_server(settings):
        pass


async def test_a_client_that_says_nothing_does_not_outlive_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its connection would be cancelled with the event loop, which writes an error to the log."""
    server = MetricsServer(Gate(), Metrics(version="test").registry)
    host, _, port = (await server.start("127.0.0.1:0")).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET ")
    answered, other = await asyncio.open_connection(host, int(port))
    other.write(b"GET /livez HTTP/1.1\r\n\r\n")
    await answered.read()  # the first is connected by then
    other.close()

    await asyncio.wait_for(server.stop(), MAX_SECONDS / 2)

    assert await reader.read() == b""
    assert caplog.text == ""
    writer.close()

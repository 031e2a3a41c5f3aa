"""Clients that mean harm: what they can take is bounded, and others are served meanwhile."""

import random
import socket
import struct
from asyncio import AbstractEventLoop, get_running_loop, run_coroutine_threadsafe
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from lokr_serve.app import Addresses
from lokr_serve.client import Client, Credentials, Health, ResourceExhaustedError
from lokr_serve.client.errors import client_error
from lokr_serve.config import Settings
from lokr_serve.errors import EngineStoppedError
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.options import MAX_METADATA_BYTES
from lokr_serve.rpc.server import Listeners, build_listeners
from lokr_serve.types import GenerationRequest, SamplingParams, TextPrompt
from tests.serve.running import RunningServer, running_server, tiny_settings
from tests.serve.security.calling import bearer, channel_to, code_of
from tests.serve.security.methods import GUARDED
from tests.serve.security.pki import Pki, token_of
from tests.serve.security.raw_http2 import (
    ACK,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    call,
    connection,
    frame,
    frames,
    headers,
    read_to_end,
)

HELLO = PREFACE + frame(SETTINGS, 0, 0)
MAX_CONCURRENT_STREAMS = 3  # as an entry of SETTINGS
TOO_MANY = (7, 11)  # refused, or asked to be calm: what a stream over the bound ends with
WATCH = b"/grpc.health.v1.Health/Watch"
LONG = GenerationRequest(
    prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=100, ignore_eos=True)
)


def is_alive(address: str) -> bool:
    """Whether a listener answers."""
    with Client(address, timeout_seconds=20) as client:
        return client.health() is Health.SERVING


def first_frame(opened_to: str, sent: bytes, kind: int, timeout_seconds: float = 10) -> Frame:
    """Send bytes on a new connection, and return the first frame of a kind that comes back."""
    with connection(opened_to, timeout_seconds) as opened:
        opened.sendall(sent)
        return next(found for found in frames(opened) if found.kind == kind)


def is_greeted(opened: socket.socket) -> bool:
    """Whether a server says anything on a connection before it closes it."""
    try:
        opened.sendall(HELLO)
        return bool(opened.recv(1))
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    "path",
    [b"/lokr_serve.v1.TextService/\xff\xfe", b"", b"/", b"x", b"//", b"/a/b/c", b"/\x00/\n"],
)
def test_no_path_can_end_a_listener(guarded: Addresses, path: bytes) -> None:
    """Some releases of grpc go down at one that is no UTF-8, whoever sends it."""
    with connection(guarded.listen, 0.3) as opened:
        opened.sendall(HELLO + call(path))
        read_to_end(opened)

    assert is_alive(guarded.listen)


@pytest.mark.parametrize(
    "more",
    [
        ((b"authorization", b"\xff\xfe"),),
        ((b"authorization", b"Bearer \xc3\xa9"),),
        ((b"x-request-id", b"\xff"),),
        ((b"x-\xff", b"a"),),
        ((b"grpc-timeout", b"soon"),),
        ((b"traceparent", b"\xff" * 55),),
        ((b"x-bin", b"no base64!"),),
    ],
)
def test_no_metadata_can_end_a_listener(
    guarded: Addresses, more: tuple[tuple[bytes, bytes], ...]
) -> None:
    """Nor does any make the server forget to ask who calls."""
    with connection(guarded.listen, 0.3) as opened:
        opened.sendall(HELLO + call(GUARDED[0].encode(), more))
        received = read_to_end(opened)

    assert b"grpc-status\x010" not in received
    assert is_alive(guarded.listen)


def test_noise_harms_nobody(guarded: Addresses) -> None:
    """Port scanners talk anything but HTTP/2."""
    noise = random.Random(0)
    for _ in range(10):
        with connection(guarded.listen, 0.05) as opened:
            opened.sendall(noise.choice((b"", HELLO)) + noise.randbytes(2000))
            read_to_end(opened)

    assert is_alive(guarded.listen)


def test_metadata_is_bounded(guarded: Addresses) -> None:
    """Every byte is kept and read before anyone knows who calls; tokens may be long, though."""
    token = bearer("reader")
    long, too_long = (("x", "a" * (MAX_METADATA_BYTES + more)) for more in (-2000, 2000))
    with channel_to(guarded.listen) as channel:
        codes = [
            code_of(channel, GUARDED[0], (*token, more), [b"\xff"]) for more in (long, too_long)
        ]

    assert codes == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of time that a test can wait for."""
    monkeypatch.setattr("lokr_serve.rpc.options.HANDSHAKE_SECONDS", 0.2)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_connection_that_says_nothing_is_closed(
    model_folder: Path, pki: Pki, *, has_tls: bool
) -> None:
    """Else a stranger could hold all that the server can have, at no cost."""
    security = pki.settings(client_ca=False) if has_tls else {}
    with (
        running_server(tiny_settings(model_folder, security=security)) as server,
        connection(server.ready.result().listen, 10) as opened,
    ):
        opened.settimeout(10)
        received = read_to_end(opened)  # returns when the server closes

        assert opened.recv(1) == b""
    assert len(received) < 200


def test_connections_streams_and_their_age_are_bounded(model_folder: Path) -> None:
    """Each by a setting."""
    limits = {"max_connections": 3, "max_streams": 2, "max_connection_seconds": 0.3}
    with running_server(tiny_settings(model_folder, server=limits)) as server:
        address = server.ready.result().listen
        told = first_frame(address, HELLO, SETTINGS)
        streams = (frame(HEADERS, END_HEADERS, n, headers(WATCH)) for n in (1, 3, 5))
        refused = first_frame(address, HELLO + b"".join(streams), RST_STREAM)
        goaway = first_frame(address, HELLO, GOAWAY)
        with ExitStack() as held:
            opened = [held.enter_context(connection(address, 5)) for _ in range(6)]
            answered = sum(map(is_greeted, opened))

    entries = struct.iter_unpack(">HI", told.payload)
    assert dict(entries)[MAX_CONCURRENT_STREAMS] == 2
    assert (refused.stream, int.from_bytes(refused.payload) in TOO_MANY) == (5, True)
    assert b"max_age" in goaway.payload
    assert 1 <= answered <= 3


def test_a_stream_outlives_the_age_of_its_connection(model_folder: Path) -> None:
    """Clients are asked to connect anew; what they have begun goes on."""
    settings = tiny_settings(model_folder, server={"max_connection_seconds": 0.05})
    with (
        running_server(settings) as server,
        Client(server.ready.result().listen) as client,
    ):
        for _ in range(3):
            *_, finished = client.generate(LONG)

            assert finished.usage.completion_tokens == 100  # type: ignore[union-attr]


def test_a_flood_of_pings_ends_its_connection(guarded: Addresses) -> None:
    """Others are not disturbed."""
    pings = b"".join(frame(PING, 0, 0, bytes(8)) for _ in range(20))

    assert b"too_many_pings" in first_frame(guarded.listen, HELLO + pings, GOAWAY).payload
    assert is_alive(guarded.listen)


def test_watches_of_health_are_bounded(guarded: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need no credentials, and each is kept until the caller goes."""
    monkeypatch.setattr("lokr_serve.rpc.health.MAX_WATCHES", 1)
    with channel_to(guarded.listen) as channel:
        stub = HealthStub(channel)
        first = stub.Watch(HealthCheckRequest())
        next(first)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(HealthCheckRequest()))
        first.cancel()

    assert isinstance(client_error(caught.value), ResourceExhaustedError)


def test_strangers_do_not_keep_callers_from_being_served(guarded: Addresses) -> None:
    """Hundreds of refused calls, in the middle of a stream that goes on."""
    credentials = Credentials(token=token_of("reader"))
    with (
        channel_to(guarded.listen) as channel,
        Client(guarded.listen, credentials=credentials) as client,
    ):
        stream = client.generate(LONG)
        next(stream)
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(GUARDED[0])
        calls = [method(iter(()), timeout=30) for _ in range(300)]
        codes = {each.code() for each in calls}
        *_, finished = stream

    assert codes == {grpc.StatusCode.UNAUTHENTICATED}
    assert finished.usage.completion_tokens == 100  # type: ignore[union-attr]


def test_a_burst_of_strangers_cancels_nobodys_calls(
    model_folder: Path, clients_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a thousand calls wait while the server does something else, and each is answered.

    By itself, grpc would begin to cancel calls then, whoever made them.
    """
    loops: list[AbstractEventLoop] = []

    def build(gate: Gate, settings: Settings, metrics: Metrics, tracer: None) -> Listeners:
        loops.append(get_running_loop())
        return build_listeners(gate, settings, metrics, tracer)

    monkeypatch.setattr("lokr_serve.app.build_listeners", build)
    settings, is_read = tiny_settings(model_folder, security={"clients": clients_file}), Event()
    burst = b"".join(call(GUARDED[0].encode(), stream=2 * n + 1) for n in range(1500))
    ends: list[bytes] = []
    with (
        running_server(settings) as server,
        connection(server.ready.result().listen, 60) as opened,
    ):
        loops[0].call_soon_threadsafe(is_read.wait, 60)
        opened.sendall(HELLO + frame(SETTINGS, ACK, 0) + burst + frame(PING, 0, 0, bytes(8)))
        for found in frames(opened):
            if found.kind == PING:  # all that was sent before it has been read
                is_read.set()
            elif found.kind == HEADERS:
                ends.append(found.payload)
            if len(ends) == 1500:
                break

    assert all(b"no credentials" in end for end in ends)


def test_a_server_whose_listener_has_ended_ends_itself(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would live on, deaf, and nobody would start another."""
    ends: list[Callable[[], object]] = []

    def build(gate: Gate, settings: Settings, metrics: Metrics, tracer: None) -> Listeners:
        listeners, loop = build_listeners(gate, settings, metrics, tracer), get_running_loop()
        ends.append(lambda: run_coroutine_threadsafe(listeners.admin.server.stop(0), loop))
        return listeners

    monkeypatch.setattr("lokr_serve.app.build_listeners", build)
    monkeypatch.setattr("lokr_serve.app.WATCH_SECONDS", 0.05)
    server = RunningServer(settings=tiny_settings(model_folder))
    server.start()
    server.ready.result(30)
    ends[0]()

    with pytest.raises(EngineStoppedError, match=r"the listener on .* has ended"):
        server.ended.result(30)


def test_a_listener_that_fails_is_noticed_as_well(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bug of grpc raises reaches nobody but who asks."""

    async def fail(*limit: float) -> bool:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    def build(gate: Gate, settings: Settings, metrics: Metrics, tracer: None) -> Listeners:
        listeners = build_listeners(gate, settings, metrics, tracer)
        monkeypatch.setattr(listeners.admin.server, "wait_for_termination", fail)
        return listeners

    monkeypatch.setattr("lokr_serve.app.build_listeners", build)
    server = RunningServer(settings=tiny_settings(model_folder))
    server.start()

    with pytest.raises(EngineStoppedError, match=r"the listener on .* has failed"):
        server.ended.result(30)

"""What surrounds calls, over a real channel: errors, metrics, permission, every kind of call."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import ErrorInfo

from lokr_serve.errors import AdapterNotFoundError
from lokr_serve.logs import request_id_variable
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate, ServingState
from lokr_serve.rpc.interceptors.authorization import ADAPTER_SERVICE, READING_METHODS
from lokr_serve.rpc.interceptors.interceptor import Context, ScopeInterceptor
from lokr_serve.rpc.interceptors.scopes import (
    cut_off_scope,
    error_scope,
    metrics_scope,
    request_id_scope,
)
from lokr_serve.v1 import adapters_pb2
from tests.serve.rpc.details import read_detail

SERVICE = "tests.Echo"


class Echo:
    """One method of each kind, whose messages are bytes."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.closed = asyncio.Event()

    async def unary(self, request: bytes, context: Context) -> bytes:
        """Reply with the request, or fail as it says."""
        match request:
            case b"unknown adapter":
                raise AdapterNotFoundError("poet")
            case b"bug":
                raise ValueError("secret path /models/x")
            case b"abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "lost")
            case b"id":
                return request_id_variable.get().encode()
            case b"wait":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.ended.set()
        return request

    async def server_stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Reply twice, and wait between them if told to."""
        try:
            yield request
            if request == b"wait":
                await asyncio.Event().wait()
            yield request
        finally:
            self.closed.set()

    async def client_stream(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Reply with all requests."""
        return b"".join([request async for request in requests])

    async def bidi_stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Reply to each request."""
        async for request in requests:
            yield request


class Stub:
    """Calls Echo."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/unary"
        )
        self.server_stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            f"/{SERVICE}/server_stream"
        )
        self.client_stream: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
            f"/{SERVICE}/client_stream"
        )
        self.bidi_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{SERVICE}/bidi_stream"
        )
        self.unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/unknown"
        )
        self.typed: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/typed"
        )
        self.typed_stream: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/typed_stream"
        )
        self.without_request: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = (
            channel.stream_unary(f"/{SERVICE}/unary")
        )


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of this test's own."""
    return Metrics(version="test")


@pytest_asyncio.fixture
async def gate() -> Gate:
    """A gate that has not opened."""
    return Gate()


@pytest_asyncio.fixture
async def echo() -> Echo:
    """The service."""
    return Echo()


@pytest_asyncio.fixture
async def stub(echo: Echo, metrics: Metrics, gate: Gate) -> AsyncIterator[Stub]:
    """A client of a server with all scopes around the service."""
    scopes = (request_id_scope, error_scope, metrics_scope(metrics), cut_off_scope(gate))
    server = grpc.aio.server(interceptors=(ScopeInterceptor(scopes),))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "server_stream": grpc.unary_stream_rpc_method_handler(echo.server_stream),
        "client_stream": grpc.stream_unary_rpc_method_handler(echo.client_stream),
        "bidi_stream": grpc.stream_stream_rpc_method_handler(echo.bidi_stream),
        "typed": grpc.unary_unary_rpc_method_handler(
            echo.unary, adapters_pb2.GetAdapterRequest.FromString
        ),
        "typed_stream": grpc.stream_unary_rpc_method_handler(
            echo.client_stream, adapters_pb2.GetAdapterRequest.FromString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stub(channel)
    await server.stop(0)


def handled(
    metrics: Metrics, kind: str, method: str, code: str, *, service: str = SERVICE
) -> float:
    """Return how many calls ended with a code."""
    labels = {
        "grpc_type": kind,
        "grpc_service": service,
        "grpc_method": method,
        "grpc_code": code,
    }
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0


async def failure(stub: Stub, request: bytes, timeout_seconds: float = 10) -> grpc.aio.AioRpcError:
    """Return the error that a unary call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.unary(request, timeout=timeout_seconds)
    return caught.value


async def test_calls_of_every_kind_pass_and_are_counted(stub: Stub, metrics: Metrics) -> None:
    """One interceptor serves all four kinds, which grpc treats apart."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    assert await stub.unary(b"a") == b"a"
    assert [reply async for reply in stub.server_stream(b"a")] == [b"a", b"a"]
    assert await stub.client_stream(requests()) == b"ab"
    assert [reply async for reply in stub.bidi_stream(requests())] == [b"a", b"b"]
    for kind, method in (
        ("unary", "unary"),
        ("server_stream", "server_stream"),
        ("client_stream", "client_stream"),
        ("bidi_stream", "bidi_stream"),
    ):
        assert handled(metrics, kind, method, "OK") == 1


async def test_an_unknown_method_is_unimplemented(stub: Stub, metrics: Metrics) -> None:
    """It goes through the scopes as well, under one name, whatever callers make up."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.unknown(b"a")

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert handled(metrics, "unknown", "unknown", "Unimplemented", service="unknown") == 1


async def test_a_call_that_ends_without_a_request_is_refused(stub: Stub) -> None:
    """No method can do anything with it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.without_request(iter(()))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["typed", "typed_stream"])
async def test_bytes_that_are_no_message_are_refused(
    stub: Stub, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """They are no fault of the server's, and anyone could fill its log with them."""
    call = {"typed": stub.typed, "typed_stream": stub.typed_stream}[method]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a\xff\xff\xff")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "request: is no message of the method's type"
    assert caplog.text == ""


async def test_an_error_of_ours_becomes_its_status(stub: Stub, metrics: Metrics) -> None:
    """Servicers raise; the table decides."""
    error = await failure(stub, b"unknown adapter")
    trailers = tuple((key, value) for key, value in error.trailing_metadata() or ())

    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert read_detail(trailers, ErrorInfo).reason == "ADAPTER_NOT_FOUND"
    assert handled(metrics, "unary", "unary", "NotFound") == 1


async def test_a_bug_tells_the_client_its_id_and_the_log_the_rest(
    stub: Stub, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """What an exception says may hold secrets; grpc itself would send it."""
    error = await failure(stub, b"bug")
    trailers = tuple((key, value) for key, value in error.trailing_metadata() or ())
    error_id = read_detail(trailers, ErrorInfo).metadata["error_id"]

    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")
    assert error_id in (error.details() or "")
    assert error_id in caplog.text
    assert "secret path" in caplog.text
    assert handled(metrics, "unary", "unary", "Internal") == 1


async def test_a_status_set_by_a_servicer_is_kept(stub: Stub) -> None:
    """The standard services abort by themselves."""
    error = await failure(stub, b"abort")

    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "lost")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [((("x-request-id", "mine"),), b"mine"), ((("x-request-id", "no good"),), None), ((), None)],
)
async def test_a_call_is_named_by_its_metadata_or_by_chance(
    stub: Stub, metadata: tuple[tuple[str, str], ...], expected: bytes | None
) -> None:
    """A name that could forge a line of log is not taken."""
    name = await stub.unary(b"id", metadata=metadata)

    assert name == expected if expected else name not in (b"", b"no good")


async def test_deadlines_and_cancellations_are_counted_apart(
    stub: Stub, echo: Echo, metrics: Metrics
) -> None:
    """A server that is too slow looks different from clients that leave."""
    error = await failure(stub, b"wait", timeout_seconds=0.1)
    await asyncio.wait_for(echo.ended.wait(), 10)
    call = stub.server_stream(b"wait")
    await call.read()
    call.cancel()
    await asyncio.wait_for(echo.closed.wait(), 10)

    assert handled(metrics, "server_stream", "server_stream", "Canceled") == 1
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert handled(metrics, "unary", "unary", "DeadlineExceeded") == 1


async def test_a_generator_is_closed_when_its_call_is_cancelled(stub: Stub, echo: Echo) -> None:
    """What it holds must be free at once, not when the garbage collector finds it."""
    call = stub.server_stream(b"wait")
    await call.read()
    call.cancel()

    await asyncio.wait_for(echo.closed.wait(), 10)


async def test_calls_end_when_the_gate_says_so(stub: Stub, gate: Gate) -> None:
    """A server that shuts down cannot wait for every call, and says why it ends them."""
    gate.close(ServingState.DRAINING)
    asyncio.get_running_loop().call_later(0.05, gate.end_calls)
    error = await failure(stub, b"wait")

    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (error.details() or "")
    gate.end_calls()


def test_reading_methods_are_those_of_the_contract() -> None:
    """A method that is renamed would otherwise change who may call it."""
    service = adapters_pb2.DESCRIPTOR.services_by_name["AdapterService"]
    methods = {method.name for method in service.methods}

    assert service.full_name == ADAPTER_SERVICE
    assert methods - READING_METHODS == {
        "LoadAdapter",
        "UnloadAdapter",
        "UpdateAdapter",
        "UploadAdapter",
    }

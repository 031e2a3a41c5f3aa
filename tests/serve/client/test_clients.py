"""Both clients, against a real server and against one that fails as it is told."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

import grpc
import pytest

from lokr_serve.client import (
    AsyncClient,
    CallCancelledError,
    Client,
    ClientError,
    Completion,
    DeadlineExceededError,
    Health,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from lokr_serve.types import (
    AdapterWeight,
    Finished,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    Started,
    TextPrompt,
)
from lokr_serve.v1.text_pb2 import GenerateOnceResponse
from tests.serve.running import Connection

SHORT = GenerationRequest(
    prompt=TextPrompt(text="x"),
    adapters=(AdapterWeight(adapter_id="poet"),),
    sampling=SamplingParams(max_tokens=4, seed=1, ignore_eos=True),
)
LONG = GenerationRequest(
    prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=8000, ignore_eos=True)
)
NOBODY = GenerationRequest(
    prompt=TextPrompt(text="x"), adapters=(AdapterWeight(adapter_id="nobody"),)
)

Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


class ToldServer:
    """A server whose GenerateOnce and UnloadAdapter do what they are told, in order."""

    def __init__(self) -> None:
        self.script: list[Behaviour] = []
        self.num_calls = 0
        self._server = grpc.server(ThreadPoolExecutor(2))
        for service, method in (
            ("lokr_serve.v1.TextService", "GenerateOnce"),
            ("lokr_serve.v1.AdapterService", "UnloadAdapter"),
        ):
            handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
                self._answer
            )
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {method: handler}),)
            )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Stop it."""
        self._server.stop(0)

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.num_calls += 1
        return self.script.pop(0)(request, context)


def succeed(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer."""
    reply = GenerateOnceResponse()
    reply.started.apply_mode = 2  # type: ignore[assignment]
    return reply.SerializeToString()


def fail_with(code: grpc.StatusCode) -> Behaviour:
    """Return the behaviour that fails with a code, without details."""

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(code, "as told")

    return fail


@pytest.fixture
def told() -> Iterator[ToldServer]:
    """A server that does what it is told."""
    server = ToldServer()
    yield server
    server.stop()


def test_what_is_unavailable_for_a_moment_is_tried_again(told: ToldServer) -> None:
    """A restart of the server is nothing that callers need to see."""
    told.script = [fail_with(grpc.StatusCode.UNAVAILABLE), succeed]
    with Client(told.address) as client:
        completion = client.generate_once(SHORT)

    assert isinstance(completion, Completion)
    assert told.num_calls == 2


def test_large_requests_are_tried_again_too(told: ToldServer) -> None:
    """They carry images to begin with; grpc by itself keeps no more than 256 KiB of a request."""
    told.script = [fail_with(grpc.StatusCode.UNAVAILABLE), succeed]
    with Client(told.address) as client:
        client.generate_once(replace(SHORT, prompt=TextPrompt(text="x" * 2**20)))

    assert told.script == []


def test_retries_end(told: ToldServer) -> None:
    """A server that is gone for long must not be asked for ever."""
    told.script = [fail_with(grpc.StatusCode.UNAVAILABLE)] * 9
    with Client(told.address) as client, pytest.raises(UnavailableError, match="as told"):
        client.generate_once(SHORT)

    assert told.num_calls == 4


def test_what_may_have_been_done_is_not_tried_again(told: ToldServer) -> None:
    """An unload whose answer was lost would end in NOT_FOUND the second time."""
    told.script = [fail_with(grpc.StatusCode.UNAVAILABLE), succeed]
    with Client(told.address) as client, pytest.raises(UnavailableError):
        client.unload_adapter("poet")

    assert told.num_calls == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.CANCELLED, CallCancelledError),
        (grpc.StatusCode.OUT_OF_RANGE, ClientError),
    ],
)
def test_a_status_without_details_is_still_typed(
    told: ToldServer, code: grpc.StatusCode, kind: type[ClientError]
) -> None:
    """Gateways answer too, and know nothing of our details."""
    told.script = [fail_with(code)]
    with Client(told.address) as client, pytest.raises(kind) as caught:
        client.generate_once(SHORT)

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason, caught.value.field) == (code, "", None)


def test_timeouts_are_per_call_or_the_client_s_own(shared_server: Connection) -> None:
    """A forgotten timeout must not hang a caller."""
    with (
        Client(shared_server.addresses.listen, timeout_seconds=0.05) as client,
        pytest.raises(DeadlineExceededError),
    ):
        client.generate_once(LONG)

    with pytest.raises(DeadlineExceededError):
        shared_server.client.generate_once(LONG, timeout_seconds=0.05)


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 1e10])
async def test_a_timeout_without_end_is_none(shared_server: Connection, seconds: float) -> None:
    """Not one that has passed already, which is what grpc makes of so large a number."""
    address = shared_server.addresses.listen
    with Client(address, timeout_seconds=seconds) as client:
        assert client.health() is Health.SERVING
    async with AsyncClient(address) as asynchronous:
        assert await asynchronous.health(timeout_seconds=seconds) is Health.SERVING


async def test_the_asyncio_client_does_what_the_blocking_one_does(
    shared_server: Connection,
) -> None:
    """Two clients, one behaviour."""
    addresses = shared_server.addresses
    async with (
        AsyncClient(addresses.listen) as client,
        AsyncClient(addresses.admin_listen) as admin,
    ):
        events = [event async for event in client.generate(SHORT)]
        completion = await client.generate_once(SHORT)
        loaded = await admin.load_adapter(LoadSpec(adapter_id="aio/new", source="poet"))
        updated = await admin.update_adapter("aio/new", ttl_seconds=50)
        listed = [adapter.adapter_id async for adapter in client.list_adapters("aio/")]
        shown = await client.get_adapter("aio/new")
        freed_bytes = await admin.unload_adapter("aio/new", drain_seconds=5)
        health = await client.health()

    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert completion.chunks == shared_server.client.generate_once(SHORT).chunks
    assert listed == [loaded.adapter_id] == [updated.adapter_id] == [shown.adapter_id]
    assert freed_bytes > 0
    assert health is Health.SERVING


async def test_the_asyncio_client_raises_the_same_errors(shared_server: Connection) -> None:
    """Code moves between the two without learning new errors."""
    async with AsyncClient(shared_server.addresses.listen) as client:
        with pytest.raises(NotFoundError) as unary:
            await client.generate_once(NOBODY)
        with pytest.raises(NotFoundError) as streamed:
            _ = [event async for event in client.generate(NOBODY)]

    for caught in (unary, streamed):
        assert caught.value.reason == "ADAPTER_NOT_FOUND"
        assert caught.value.metadata == {"adapter_id": "nobody"}


async def test_closing_an_asyncio_stream_cancels_its_request(shared_server: Connection) -> None:
    """What nobody reads must not be computed."""
    request = GenerationRequest(
        prompt=LONG.prompt,
        adapters=(AdapterWeight(adapter_id="aio/cancel"),),
        sampling=LONG.sampling,
    )
    shared_server.admin.load_adapter(LoadSpec(adapter_id="aio/cancel", source="poet"))
    async with AsyncClient(shared_server.addresses.listen) as client:
        async with aclosing(client.generate(request)) as stream:
            assert isinstance(await anext(stream), Started)

        assert shared_server.admin.unload_adapter("aio/cancel", drain_seconds=20) > 0


async def test_lists_are_fetched_page_by_page(shared_server: Connection) -> None:
    """A store of thousands must neither fail nor be cut."""
    ids = sorted(f"many/{i}" for i in range(101))
    for adapter_id in ids:
        shared_server.admin.load_adapter(LoadSpec(adapter_id=adapter_id, source="poet"))
    async with AsyncClient(shared_server.addresses.listen) as client:
        listed = [adapter.adapter_id async for adapter in client.list_adapters("many/")]

    assert listed == ids
    assert [a.adapter_id for a in shared_server.client.list_adapters("many/")] == ids
    for adapter_id in ids:
        shared_server.admin.unload_adapter(adapter_id)

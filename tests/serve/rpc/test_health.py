"""Health, over a real channel."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from lokr_serve.rpc.backend import TextBackend
from lokr_serve.rpc.gate import Gate, ServingState
from lokr_serve.rpc.health import Health
from lokr_serve.rpc.interceptors.interceptor import ScopeInterceptor
from lokr_serve.rpc.interceptors.scopes import error_scope

SERVICE = "lokr_serve.v1.TextService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest_asyncio.fixture
async def gate() -> Gate:
    """A gate that has not opened."""
    return Gate()


@pytest_asyncio.fixture
async def stub(gate: Gate) -> AsyncIterator[HealthStub]:
    """A client of a server with nothing but health."""
    server = grpc.aio.server(interceptors=(ScopeInterceptor([error_scope]),))
    add_HealthServicer_to_server(Health(gate, (SERVICE,)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield HealthStub(channel)
    await server.stop(0)


async def check(stub: HealthStub, service: str) -> int:
    """Return the status of a service."""
    reply: HealthCheckResponse = await stub.Check(HealthCheckRequest(service=service))
    return int(reply.status)


@pytest.mark.parametrize("service", ["", SERVICE, "readiness"])
async def test_nothing_is_ready_before_the_model_is(
    gate: Gate, stub: HealthStub, backend: TextBackend, service: str
) -> None:
    """A gateway that sends requests too early turns a slow start into errors."""
    assert await check(stub, service) == NOT_SERVING
    gate.open(backend)
    assert await check(stub, service) == SERVING
    gate.close(ServingState.DRAINING)
    assert await check(stub, service) == NOT_SERVING


async def test_a_server_whose_adapters_are_not_loaded_yet_is_not_ready_and_serves(
    gate: Gate, stub: HealthStub, backend: TextBackend
) -> None:
    """A rollout waits for them; an operator who looks why it does must get an answer."""
    gate.admit(backend)
    statuses = [await check(stub, service) for service in ("", SERVICE, "readiness", "liveness")]
    served = gate.backend()
    gate.open(backend)

    assert statuses == [NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING]
    assert served is backend
    assert await check(stub, SERVICE) == SERVING


@pytest.mark.parametrize("service", ["", SERVICE, "readiness"])
async def test_a_server_that_is_about_to_leave_says_so_and_serves(
    gate: Gate, stub: HealthStub, backend: TextBackend, service: str
) -> None:
    """Gateways need time to look elsewhere; a watch that ended would look like a fault to them."""
    gate.open(backend)
    watch = stub.Watch(HealthCheckRequest(service=service))
    before = (await watch.read()).status
    gate.leave()
    after = (await watch.read()).status

    assert (before, after) == (SERVING, NOT_SERVING)
    assert await check(stub, service) == NOT_SERVING
    assert await check(stub, "liveness") == SERVING
    assert not watch.done()
    assert gate.backend() is backend
    watch.cancel()


async def test_a_server_is_alive_until_its_engine_fails(gate: Gate, stub: HealthStub) -> None:
    """A probe that kills a server while it loads or drains makes things worse."""
    assert await check(stub, "liveness") == SERVING
    gate.close(ServingState.DRAINING)
    assert await check(stub, "liveness") == SERVING
    gate.close(ServingState.FAILED)
    assert await check(stub, "liveness") == NOT_SERVING


async def test_an_unknown_service_is_not_found(stub: HealthStub) -> None:
    """The health protocol asks for it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(stub, "lokr_serve.v1.Nothing")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_that_leaves_does_not_cost_another_its_news(
    gate: Gate, stub: HealthStub, backend: TextBackend
) -> None:
    """A gateway that misses the change to SERVING never sends a request."""
    first, second = (stub.Watch(HealthCheckRequest(service=SERVICE)) for _ in range(2))
    before = [(await first.read()).status, (await second.read()).status]
    first.cancel()
    await asyncio.sleep(0)
    gate.open(backend)

    assert before == [NOT_SERVING, NOT_SERVING]
    assert (await second.read()).status == SERVING
    second.cancel()


async def test_a_closing_server_ends_its_watches(gate: Gate, stub: HealthStub) -> None:
    """A watch lasts for ever, and would hold up the shutdown; its end says not to come back."""
    watch = stub.Watch(HealthCheckRequest(service=SERVICE))
    await watch.read()
    gate.close(ServingState.DRAINING)

    assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watch_of_an_unknown_service_says_so(stub: HealthStub) -> None:
    """The health protocol keeps such a watch open, for the service may come."""
    watch = stub.Watch(HealthCheckRequest(service="later"))

    assert (await watch.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()

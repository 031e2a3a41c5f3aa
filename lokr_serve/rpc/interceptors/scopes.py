"""What surrounds calls: their id in logs, metrics, the status of errors, shutdown."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc.aio import AbortError

from lokr_core import LokrError
from lokr_serve.calls import recorded_call
from lokr_serve.errors import InvalidRequestError, ShuttingDownError
from lokr_serve.interruption import Interruption
from lokr_serve.logs import request_id_variable
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.interceptors.interceptor import Call, Scope
from lokr_serve.rpc.interceptors.outcome import telling
from lokr_serve.rpc.status import PRIVATE_ERRORS, ErrorStatus, error_status, internal_status

logger = logging.getLogger(__name__)

PARTING_SECONDS = 0.1  # much more than a gateway in the same cluster takes to answer


@asynccontextmanager
async def request_id_scope(call: Call) -> AsyncIterator[None]:
    """Name the call's request in the logs, and keep a record of the call from here on."""
    request_id_variable.set(call.request_id)
    with recorded_call():
        yield


def metrics_scope(metrics: Metrics) -> Scope:
    """Return the scope that counts calls and their codes.

    It stands inside the mapping of errors, so that a call is counted before its caller knows of
    its end.
    """

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        labels = (call.kind, call.service, call.method)
        metrics.rpc_started.labels(*labels).inc()
        began_at = time.perf_counter()

        def count(code: grpc.StatusCode) -> None:
            metrics.rpc_handled.labels(*labels, _spell(code)).inc()
            metrics.rpc_seconds.labels(*labels).observe(time.perf_counter() - began_at)

        with telling(call, count):
            yield

    return scope


@asynccontextmanager
async def error_scope(call: Call) -> AsyncIterator[None]:
    """End the call with the status of the error that it raised."""
    try:
        yield
    except AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - the outer edge of a call; it is logged
        status = _status(call, error)
        await call.context.abort(status.code, status.message, status.trailers)


def _status(call: Call, error: Exception) -> ErrorStatus:
    """Return what the caller is told of an error; what is not for it goes to the log."""
    if not isinstance(error, LokrError) or isinstance(error, PRIVATE_ERRORS):
        error_id = secrets.token_hex(8)
        text = "internal error %s in %s/%s"
        logger.error(text, error_id, call.service, call.method, exc_info=error)
        return internal_status(error_id)
    status = error_status(error)
    # What is wrong with a field may be told in its own words, which are for the caller alone.
    why = type(error).__name__ if isinstance(error, InvalidRequestError) else status.message
    logger.debug("%s ended with %s: %s", call.method, status.code.name, why)
    return status


def parting_scope(gate: Gate) -> Scope:
    """Return the scope that parts a stream's last event from its end while the server drains.

    grpc closes a connection at once with the end of its last call. A gateway that has yet to say
    what it took of the events then writes to a closed connection, and may take that as the loss
    of a stream which it has received: HAProxy 2.6 does, of one in a hundred.
    """

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        yield
        if gate.is_closed and call.kind == "server_stream":
            await asyncio.sleep(PARTING_SECONDS)

    return scope


def cut_off_scope(gate: Gate) -> Scope:
    """Return the scope that ends calls when the gate says that they have had their time."""

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        async with Interruption(gate.cut_off, ShuttingDownError):
            yield

    return scope


def _spell(code: grpc.StatusCode) -> str:
    """Spell a code as dashboards of grpc metrics have it, such as ``NotFound``."""
    match code:
        case grpc.StatusCode.OK:
            return "OK"
        case grpc.StatusCode.CANCELLED:
            return "Canceled"
        case _:
            return code.name.title().replace("_", "")

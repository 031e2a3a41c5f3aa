"""What is told of calls: who makes them, their spans, and their line in the log."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from lokr_core import LokrError
from lokr_serve.calls import call_record
from lokr_serve.config import AccessLog
from lokr_serve.logs import request_id_variable
from lokr_serve.rpc.interceptors.caller import caller_variable
from lokr_serve.rpc.interceptors.interceptor import Call, Scope
from lokr_serve.rpc.interceptors.outcome import telling
from lokr_serve.rpc.status import error_rule

if TYPE_CHECKING:  # it imports opentelemetry
    from lokr_serve.tracing import CallTracer

access_logger = logging.getLogger("lokr_serve.access")


@asynccontextmanager
async def client_scope(call: Call) -> AsyncIterator[None]:
    """Name the client in the call's record; it stands within the scope that finds it out."""
    call_record().client = caller_variable.get().name
    yield


def tracing_scope(tracer: "CallTracer") -> Scope:
    """Return the scope that makes spans of calls to our own services."""

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        if call.is_standard:
            yield
            return
        record = call_record()
        metadata = call.context.invocation_metadata() or ()
        span = tracer.begin(f"{call.service}/{call.method}", metadata)
        context = span.get_span_context()
        record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"

        def end(code: grpc.StatusCode) -> None:
            tracer.end(span, record, request_id=request_id_variable.get(), code=code.name)

        with telling(call, end):
            yield

    return scope


def access_scope(wanted: AccessLog) -> Scope:
    """Return the scope that writes a line for each call that has ended, or failed."""

    @asynccontextmanager
    async def scope(call: Call) -> AsyncIterator[None]:
        if wanted == "off" or call.is_standard:
            yield
            return
        began_at, reason = time.monotonic(), ""

        def end(code: grpc.StatusCode) -> None:
            if wanted == "all" or code is not grpc.StatusCode.OK:
                _write(call, code, reason, time.monotonic() - began_at)

        with telling(call, end):
            try:
                yield
            except LokrError as error:
                reason = error_rule(error).reason
                raise

    return scope


def _write(call: Call, code: grpc.StatusCode, reason: str, seconds: float) -> None:
    record = call_record()
    fields: dict[str, str | int | float] = {
        "method": f"{call.service}/{call.method}",
        "code": code.name,
        "seconds": round(seconds, 6),
        **record.counts,
    }
    if reason:
        fields["reason"] = reason
    if record.apply_mode is not None:
        fields["apply_mode"] = record.apply_mode
    access_logger.info("call ended", extra={"fields": fields})

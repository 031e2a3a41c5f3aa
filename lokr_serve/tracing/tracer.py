"""CallTracer: makes a span of each call, and one of each of its phases."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lokr_serve.calls import Attribute, CallRecord, Phase
from lokr_serve.config import TracingSettings

logger = logging.getLogger(__name__)

# Codes that are the server's own fault, by the semantic conventions for RPC; all others leave the
# span's status unset.
_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_PARENT_KEYS = ("traceparent", "tracestate")


class CallTracer:
    """Makes spans of calls; they are sent by the processor that it is given.

    Attributes are named as the semantic conventions for RPC have it now (``rpc.system.name``,
    ``rpc.method`` with the service, ``rpc.response.status_code``); our own start with
    ``lokr_serve.``.
    """

    def __init__(
        self, processor: SpanProcessor, settings: TracingSettings, *, version: str
    ) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_share)),
            resource=Resource.create(
                {"service.name": settings.service_name, "service.version": version}
            ),
            shutdown_on_exit=False,  # it could hold the process up; close() cannot
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("lokr_serve", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
        """Begin the span of a call.

        Args:
            method: The service and the method, with a slash between them.
            metadata: What came with the call; a parent that is malformed is none.
        """
        return self._tracer.start_span(
            method,
            context=self._propagator.extract(_carrier(metadata)),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method},
        )

    def end(self, span: Span, record: CallRecord, *, request_id: str, code: str) -> None:
        """End the span of a call, with a span for each of its phases within it.

        Args:
            span: What :meth:`begin` gave.
            record: What is known of the call.
            request_id: Its id.
            code: The status that it ends with, such as ``NOT_FOUND``.
        """
        if not span.is_recording():
            return
        offset_ns = time.time_ns() - time.monotonic_ns()
        for phase in record.phases:
            self._add(phase, span, offset_ns)
        span.set_attributes(_own_attributes(record, request_id))
        span.set_attribute("rpc.response.status_code", code)
        if code in _FAULTS:
            _fail(span, code)
        span.end()

    async def close(self, timeout_seconds: float) -> None:
        """Send the spans that are left, or leave them after the timeout."""
        outcome: Future[None] = Future()
        outcome.set_running_or_notify_cancel()

        def shut_down() -> None:
            self._provider.shutdown()
            outcome.set_result(None)

        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        try:
            await asyncio.wait_for(asyncio.wrap_future(outcome), timeout_seconds)
        except TimeoutError:
            logger.warning("the last spans could not be sent within %g s", timeout_seconds)

    def _add(self, phase: Phase, parent: Span, offset_ns: int) -> None:
        span = self._tracer.start_span(
            phase.name,
            context=set_span_in_context(parent),
            start_time=_wall_ns(phase.began_at, offset_ns),
            attributes=_named(phase.attributes),
        )
        for part in phase.parts:
            self._add(part, span, offset_ns)
        if phase.error is not None:
            _fail(span, phase.error)
        span.end(_wall_ns(phase.ended_at, offset_ns))


def _carrier(metadata: Iterable[tuple[str, str | bytes]]) -> Mapping[str, list[str]]:
    """Return the keys of the parent; one that is named twice is none, states are joined."""
    carrier: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in _PARENT_KEYS and isinstance(value, str):
            carrier.setdefault(key, []).append(value)
    return carrier if len(carrier.get("traceparent", ())) == 1 else {}


def _own_attributes(record: CallRecord, request_id: str) -> Mapping[str, Attribute]:
    attributes: dict[str, Attribute] = {"request_id": request_id, **record.counts}
    if record.client:
        attributes["client"] = record.client
    if record.mix is not None:
        attributes["mix"] = record.mix
    if record.apply_mode is not None:
        attributes["apply_mode"] = record.apply_mode
    return _named(attributes)


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"lokr_serve.{name}": value for name, value in attributes.items()}


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _wall_ns(monotonic_seconds: float, offset_ns: int) -> int:
    return round(monotonic_seconds * 1e9) + offset_ns

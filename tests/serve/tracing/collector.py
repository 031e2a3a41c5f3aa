"""A collector of OpenTelemetry's protocol, over gRPC, that keeps the spans it gets."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_SECONDS = 30.0


class Collector(TraceServiceServicer):
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[ExportTraceServiceRequest] = []
        self._changed = threading.Condition()

    def Export(  # noqa: N802 - the name of the method on the wire
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Take spans."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """Return every span until now."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def trace(self, request_id: str) -> "Trace":
        """Wait for the span of a call, and return it with the others of its trace."""

        def is_it(span: Span) -> bool:
            return attributes(span.attributes).get("lokr_serve.request_id") == request_id

        with self._changed:
            assert self._changed.wait_for(lambda: any(map(is_it, self.spans())), WAIT_SECONDS)
            (server,) = filter(is_it, self.spans())
            own = [span for span in self.spans() if span.trace_id == server.trace_id]
        return Trace(server, own)


class Trace:
    """The span of one call, and those within it."""

    def __init__(self, server: Span, spans: Sequence[Span]) -> None:
        self.server = server
        self.spans = spans
        self.attributes = attributes(server.attributes)

    def children(self) -> list[Span]:
        """Return the phases of the call, by their begin."""
        own = (span for span in self.spans if span.parent_span_id == self.server.span_id)
        return sorted(own, key=lambda span: span.start_time_unix_nano)

    def names(self) -> list[str]:
        """Return the names of the call's phases, by their begin."""
        return [span.name for span in self.children()]

    def child(self, name: str) -> Span:
        """Return the one phase with a name."""
        (span,) = (span for span in self.children() if span.name == name)
        return span


def attributes(pairs: Sequence[KeyValue]) -> dict[str, object]:
    """Return attributes by name."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case kind:
            raise ValueError(f"a value of another kind: {kind}")


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Run a collector on a free port until the block ends."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()

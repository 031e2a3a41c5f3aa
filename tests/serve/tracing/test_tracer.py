"""Spans of calls: parents, sampling, phases and errors."""

import asyncio
import time
from collections.abc import Iterator
from contextvars import Context

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lokr_serve.calls import CallRecord, call_record, note, phase, recorded_call
from lokr_serve.config import TracingSettings
from lokr_serve.tracing.tracer import CallTracer

METHOD = "lokr_serve.v1.TextService/Generate"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps what is exported."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> CallTracer:
    """A tracer that exports each span at once."""
    return tracer_of(exporter)


def tracer_of(exporter: InMemorySpanExporter, sample_share: float = 1.0) -> CallTracer:
    """Return a tracer that exports each span at once."""
    settings = TracingSettings(sample_share=sample_share)
    return CallTracer(SimpleSpanProcessor(exporter), settings, version="1.2.3")


@pytest.fixture
def record() -> Iterator[CallRecord]:
    """The record of a call that lasts as long as the test."""
    with recorded_call() as record:
        yield record


def test_the_callers_trace_goes_on(tracer: CallTracer, exporter: InMemorySpanExporter) -> None:
    """A request is followed through all the services that it passes."""
    metadata = (("traceparent", PARENT), ("tracestate", "a=1"), ("x-bin", b"\0"))
    span = tracer.begin(METHOD, metadata)
    tracer.end(span, CallRecord(), request_id="r-1", code="OK")
    (ended,) = exporter.get_finished_spans()

    assert ended.context is not None
    assert ended.parent is not None
    assert f"{ended.context.trace_id:032x}" == TRACE_ID
    assert f"{ended.parent.span_id:016x}" == "b7ad6b7169203331"
    assert ended.context.trace_state.get("a") == "1"
    assert (ended.name, ended.kind) == (METHOD, SpanKind.SERVER)
    assert dict(ended.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "lokr_serve.request_id": "r-1",
    }
    assert ended.resource.attributes["service.name"] == "lokr-serve"
    assert ended.resource.attributes["service.version"] == "1.2.3"


@pytest.mark.parametrize(
    "metadata",
    [
        (("traceparent", "nonsense"),),
        (("traceparent", f"00-{'0' * 32}-b7ad6b7169203331-01"),),
        (("traceparent", PARENT), ("traceparent", PARENT)),
        (("traceparent", PARENT.encode()),),
        (("tracestate", "a=1"),),
        (),
    ],
)
def test_a_parent_that_is_none_begins_a_trace(
    tracer: CallTracer,
    exporter: InMemorySpanExporter,
    metadata: tuple[tuple[str, str | bytes], ...],
) -> None:
    """What callers send must not fail their calls, nor lose their spans."""
    tracer.end(tracer.begin(METHOD, metadata), CallRecord(), request_id="r-1", code="OK")
    (ended,) = exporter.get_finished_spans()

    assert ended.parent is None
    assert ended.context is not None
    assert f"{ended.context.trace_id:032x}" != TRACE_ID


@pytest.mark.parametrize(
    ("parent", "sample_share", "num_spans"), [(PARENT, 0.0, 2), (UNSAMPLED, 1.0, 0), (None, 0.0, 0)]
)
def test_the_caller_decides_on_sampling_else_the_share(
    exporter: InMemorySpanExporter,
    record: CallRecord,
    parent: str | None,
    sample_share: float,
    num_spans: int,
) -> None:
    """A trace is whole or not there; and ids are there for the log in either case."""
    tracer = tracer_of(exporter, sample_share)
    span = tracer.begin(METHOD, () if parent is None else (("traceparent", parent),))
    with phase("load"):
        pass
    tracer.end(span, record, request_id="r-1", code="OK")

    assert len(exporter.get_finished_spans()) == num_spans
    assert span.get_span_context().is_valid


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("OK", StatusCode.UNSET),
        ("NOT_FOUND", StatusCode.UNSET),
        ("CANCELLED", StatusCode.UNSET),
        ("INTERNAL", StatusCode.ERROR),
        ("UNAVAILABLE", StatusCode.ERROR),
    ],
)
def test_faults_of_the_server_are_errors_of_its_span(
    tracer: CallTracer, exporter: InMemorySpanExporter, code: str, status: StatusCode
) -> None:
    """The conventions count what callers do wrong against them."""
    tracer.end(tracer.begin(METHOD, ()), CallRecord(), request_id="r-1", code=code)
    (ended,) = exporter.get_finished_spans()

    assert ended.status.status_code is status
    assert (ended.attributes or {})["rpc.response.status_code"] == code
    assert (ended.attributes or {}).get("error.type") == (
        code if status is StatusCode.ERROR else None
    )


def test_phases_are_spans_within_the_calls(
    tracer: CallTracer, exporter: InMemorySpanExporter, record: CallRecord
) -> None:
    """Where the time went is told by spans whose times were noted on the way."""
    span = tracer.begin(METHOD, ())
    with phase("load") as load:
        note("adapters_loaded", ("poet",))
        with phase("merge"):
            pass
    with pytest.raises(ValueError, match="secret"), phase("generate"):
        raise ValueError("a secret")
    record.mix, record.apply_mode, record.client = "poet*0.5", "merged", "team-a"
    record.counts["prompt_tokens"] = 3
    tracer.end(span, record, request_id="r-1", code="OK")
    merge_span, load_span, generate_span, call_span = exporter.get_finished_spans()

    assert [s.name for s in (merge_span, load_span, generate_span)] == ["merge", "load", "generate"]
    assert (merge_span.parent, load_span.parent) == (load_span.context, call_span.context)
    assert load_span.end_time is not None
    assert load_span.start_time is not None
    assert load_span.end_time - load_span.start_time == pytest.approx(
        (load.ended_at - load.began_at) * 1e9, abs=1e3
    )
    assert abs(load_span.end_time - time.time_ns()) < 60e9
    assert dict(load_span.attributes or {}) == {"lokr_serve.adapters_loaded": ("poet",)}
    assert generate_span.status.status_code is StatusCode.ERROR
    assert dict(generate_span.attributes or {}) == {"error.type": "ValueError"}
    assert "secret" not in generate_span.to_json()
    own = {k: v for k, v in (call_span.attributes or {}).items() if k.startswith("lokr_serve.")}
    assert own == {
        "lokr_serve.request_id": "r-1",
        "lokr_serve.client": "team-a",
        "lokr_serve.mix": "poet*0.5",
        "lokr_serve.apply_mode": "merged",
        "lokr_serve.prompt_tokens": 3,
    }


async def test_tasks_do_not_write_into_each_others_records() -> None:
    """Many calls are served on one thread; what is noted of one must not tell of another."""
    both_have_begun = asyncio.Barrier(2)

    async def serve(name: str) -> CallRecord:
        with recorded_call() as record, phase(name):
            await both_have_begun.wait()
            note("name", name)
        return record

    records = await asyncio.gather(serve("a"), serve("b"))

    assert [[p.name for p in record.phases] for record in records] == [["a"], ["b"]]
    assert [record.phases[0].attributes["name"] for record in records] == ["a", "b"]


def test_what_is_noted_outside_of_calls_is_lost() -> None:
    """Parts of the server are also used without a server around them."""

    def work() -> int:
        note("name", "nobody's")
        with phase("nobody's"):
            pass
        return len(call_record().phases)

    assert Context().run(work) == 0

"""What a collector gets of a server's calls."""

from dataclasses import replace
from itertools import pairwise

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lokr_serve.client import ClientError
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    Chunk,
    GenerationRequest,
    ImageParams,
    ImageRequest,
    SamplingParams,
    TextPrompt,
)
from lokr_serve.v1.text_pb2 import GenerateRequest
from lokr_serve.v1.text_pb2 import SamplingParams as SamplingMessage
from tests.serve.running import Connection
from tests.serve.tracing.collector import Collector, attributes

PROMPT = "a planted secret"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


def request(request_id: str, *adapters: str, n: int = 1, max_tokens: int = 4) -> GenerationRequest:
    """Return a request whose prompt nobody may tell."""
    return GenerationRequest(
        request_id=request_id,
        prompt=TextPrompt(text=PROMPT),
        adapters=tuple(AdapterWeight(adapter_id=name) for name in adapters),
        sampling=SamplingParams(max_tokens=max_tokens, n=n, seed=1, ignore_eos=True),
        apply_mode=ApplyMode.MERGED,
    )


def test_a_text_is_told_from_its_wait_to_its_last_token(
    traced_server: Connection, collector: Collector
) -> None:
    """An operator sees where a slow request was slow, within the trace of its caller."""
    traced_server.text.GenerateOnce(
        GenerateRequest(
            request_id="whole", text=PROMPT, sampling=SamplingMessage(max_tokens=4, ignore_eos=True)
        ),
        metadata=(("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),),
    )
    trace = collector.trace("whole")

    assert trace.server.trace_id.hex() == TRACE_ID
    assert trace.server.parent_span_id.hex() == PARENT_ID
    assert trace.names() == ["tokenize", "load", "queue", "prefill", "decode"]
    assert (
        trace.attributes.items()
        >= {
            "rpc.method": "lokr_serve.v1.TextService/GenerateOnce",
            "rpc.response.status_code": "OK",
            "lokr_serve.mix": "",
            "lokr_serve.apply_mode": "unmerged",
            "lokr_serve.completion_tokens": 4,
        }.items()
    )
    assert attributes(trace.child("decode").attributes) == {
        "lokr_serve.completion_tokens": 4,
        "lokr_serve.finish_reason": "max_tokens",
    }


def test_phases_follow_each_other_within_their_call(
    traced_server: Connection, collector: Collector
) -> None:
    """Times that came from elsewhere than the call's own clock would not fit into it."""
    traced_server.client.generate_once(request("ordered", "poet"))
    trace = collector.trace("ordered")
    times = [edge for span in trace.children() for edge in edges(span)]
    slack_ns = 2_000_000  # clocks are read one after the other

    assert all(after >= before - slack_ns for before, after in pairwise(times))
    assert times[0] >= trace.server.start_time_unix_nano - slack_ns
    assert times[-1] <= trace.server.end_time_unix_nano + slack_ns


def edges(span: Span) -> tuple[int, int]:
    """Return when a span began and ended."""
    return span.start_time_unix_nano, span.end_time_unix_nano


def test_each_of_several_sequences_is_told_apart(
    traced_server: Connection, collector: Collector
) -> None:
    """They wait together; from then on each takes its own time."""
    traced_server.client.generate_once(request("three", n=3))
    trace = collector.trace("three")
    decodes = [attributes(s.attributes) for s in trace.children() if s.name == "decode"]

    assert sorted(trace.names()) == sorted(
        ["tokenize", "load", "queue", *["prefill"] * 3, *["decode"] * 3]
    )
    assert {decode["lokr_serve.sequence"] for decode in decodes} == {0, 1, 2}
    assert trace.attributes["lokr_serve.completion_tokens"] == 12


def test_what_was_loaded_and_merged_on_the_way_is_told(
    traced_server: Connection, collector: Collector
) -> None:
    """The first request for an adapter is slower than all others, for a reason."""
    traced_server.client.generate_once(request("cold", "pirate", "plain"))
    traced_server.client.generate_once(request("warm", "pirate", "plain"))
    cold, warm = collector.trace("cold"), collector.trace("warm")
    loads = {
        name: attributes(t.child("load").attributes) for name, t in {"c": cold, "w": warm}.items()
    }
    parts = [s.name for s in cold.spans if s.parent_span_id == cold.child("load").span_id]

    assert loads == {"c": {"lokr_serve.adapters_loaded": ["pirate", "plain"]}, "w": {}}
    assert parts == ["merge"]
    assert cold.attributes["lokr_serve.mix"] == "pirate+plain"
    assert not [s for s in warm.spans if s.name == "merge"]


def test_a_call_that_fails_says_in_which_phase(
    traced_server: Connection, collector: Collector
) -> None:
    """The caller's mistake is no error of the server, but the phase has one."""
    bad = AdapterWeight(adapter_id="poet", module_weights=(("no.such.module", 1.0),))
    with pytest.raises(ClientError):
        traced_server.client.generate_once(replace(request("failed"), adapters=(bad,)))
    trace = collector.trace("failed")
    load = trace.child("load")

    assert trace.names() == ["tokenize", "load"]
    assert attributes(load.attributes)["error.type"] == "InvalidRequestError"
    assert load.status.code == Status.STATUS_CODE_ERROR
    assert trace.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert trace.server.status.code == Status.STATUS_CODE_UNSET


def test_a_text_that_is_cancelled_has_one_phase_in_the_engine(
    traced_server: Connection, collector: Collector
) -> None:
    """The engine says where the time went at the end alone; until then it is one stretch."""
    events = traced_server.client.generate(request("cancelled", max_tokens=4000))
    next(event for event in events if isinstance(event, Chunk))
    events.close()
    trace = collector.trace("cancelled")
    num_tokens = trace.attributes["lokr_serve.completion_tokens"]

    assert trace.names() == ["tokenize", "load", "generate"]
    assert trace.attributes["rpc.response.status_code"] == "CANCELLED"
    assert isinstance(num_tokens, int)
    assert num_tokens >= 1
    assert attributes(trace.child("generate").attributes) == {"error.type": "CancelledError"}


def test_an_image_is_told_from_its_plan_to_its_file(
    traced_image_server: Connection, collector: Collector
) -> None:
    """Denoising, decoding and encoding are slow for different reasons."""
    wanted = ImageRequest(
        request_id="image",
        prompt=PROMPT,
        adapters=(AdapterWeight(adapter_id="ink"),),
        params=ImageParams(width=32, height=16, num_steps=2, num_images=2),
        apply_mode=ApplyMode.UNMERGED,
    )
    traced_image_server.client.generate_image_once(wanted)
    trace = collector.trace("image")

    assert trace.names() == ["plan", "load", "queue", "denoise", "decode", "encode", "encode"]
    assert (
        trace.attributes.items()
        >= {
            "lokr_serve.images": 2,
            "lokr_serve.denoising_steps": 4,
            "lokr_serve.mix": "ink",
        }.items()
    )
    assert [attributes(s.attributes) for s in trace.children()[-2:]] == [
        {"lokr_serve.image": 0},
        {"lokr_serve.image": 1},
    ]


def test_nothing_of_a_prompt_or_its_answer_is_exported(
    traced_server: Connection, collector: Collector
) -> None:
    """Traces are read by more people than may read what users write."""
    traced_server.client.generate_once(request("quiet", "poet"))
    with pytest.raises(ClientError):
        traced_server.client.generate_once(request("loud", "nobody"))
    for request_id in ("quiet", "loud"):
        collector.trace(request_id)

    assert not any(PROMPT.encode() in r.SerializeToString() for r in collector.requests)


def test_health_checks_have_no_spans(traced_server: Connection, collector: Collector) -> None:
    """Probes come every few seconds from everywhere."""
    traced_server.client.health()
    traced_server.client.generate_once(request("after"))
    collector.trace("after")

    assert not any("Health" in span.name for span in collector.spans())
    (resource,) = {
        str(attributes(resource.resource.attributes)["service.name"])
        for exported in collector.requests
        for resource in exported.resource_spans
        if any("Text" in span.name for scope in resource.scope_spans for span in scope.spans)
    }
    assert resource == "tiny"

"""What one side writes, the other reads back as it was."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.client import replies, requests
from lokr_serve.rpc.conversion import adapters, text_replies, text_requests
from lokr_serve.types import (
    AdapterOverrides,
    AdapterWeight,
    ApplyMode,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    FinishReason,
    GenerationRequest,
    LoadSpec,
    ResolvedAdapter,
    SamplingParams,
    Started,
    TextPrompt,
    Timing,
    TokenLogprob,
    TokenPrompt,
    TopLogprob,
    Usage,
)
from lokr_serve.v1 import text_pb2
from tests.serve.rpc.statuses import adapter_status, failed_status

COUNTS = st.integers(0, 2**31 - 1)
REALS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 1e9)
IDS = st.sampled_from(["poet", "a/b.c-1", "Z"])

PROMPTS = st.one_of(
    st.builds(TextPrompt, text=TEXTS),
    st.builds(TokenPrompt, ids=st.lists(COUNTS, max_size=5).map(tuple)),
    st.builds(
        ChatPrompt,
        messages=st.lists(st.builds(ChatMessage, role=TEXTS, content=TEXTS), max_size=3).map(tuple),
    ),
)
ADAPTERS = st.builds(
    AdapterWeight,
    adapter_id=IDS,
    weight=REALS,
    module_weights=st.dictionaries(TEXTS, REALS, max_size=3).map(
        lambda weights: tuple(sorted(weights.items()))
    ),
)
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.integers(5, 1000),
    temperature=st.floats(0, 100),
    top_k=COUNTS,
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(TEXTS.filter(bool), max_size=3).map(tuple),
    stop_token_ids=st.lists(COUNTS, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    min_tokens=st.integers(0, 5),
    logprobs=st.none() | st.integers(0, 20),
    n=st.integers(1, 8),
)
REQUESTS = st.builds(
    GenerationRequest,
    prompt=PROMPTS,
    adapters=st.lists(ADAPTERS, max_size=3).map(tuple),
    sampling=SAMPLING,
    request_id=st.sampled_from(["a", "x-1"]),
    apply_mode=st.sampled_from(ApplyMode),
)
STARTED = st.builds(
    Started,
    request_id=TEXTS,
    prompt_tokens=COUNTS,
    adapters=st.lists(
        st.builds(ResolvedAdapter, adapter_id=IDS, version=TEXTS, weight=REALS), max_size=3
    ).map(tuple),
    mix_name=TEXTS,
    apply_mode=st.sampled_from([ApplyMode.UNMERGED, ApplyMode.MERGED]),
    seed=st.integers(0, 2**64 - 1),
)
LOGPROBS = st.builds(
    TokenLogprob,
    token_id=COUNTS,
    logprob=REALS,
    top=st.lists(st.builds(TopLogprob, token_id=COUNTS, logprob=REALS), max_size=2).map(tuple),
)
CHUNKS = st.builds(
    Chunk,
    index=COUNTS,
    text=TEXTS,
    token_ids=st.lists(COUNTS, max_size=3).map(tuple),
    logprobs=st.lists(LOGPROBS, max_size=3).map(tuple),
)
FINISHED = st.builds(
    Finished,
    index=COUNTS,
    reason=st.sampled_from(FinishReason),
    stop=st.none() | TEXTS | COUNTS,
    usage=st.builds(
        Usage, prompt_tokens=COUNTS, cached_prompt_tokens=COUNTS, completion_tokens=COUNTS
    ),
    timing=st.builds(
        Timing, queue_seconds=SECONDS, first_token_seconds=SECONDS, total_seconds=SECONDS
    ),
)
LOADS = st.builds(
    LoadSpec,
    adapter_id=IDS,
    source=TEXTS.filter(bool),
    replace=st.booleans(),
    pinned=st.booleans(),
    ttl_seconds=st.none() | SECONDS,
    digest=st.none() | st.just("ab" * 32),
    overrides=st.builds(
        AdapterOverrides,
        partial=st.booleans(),
        scale_override=st.none() | REALS,
        alpha=st.none() | REALS,
        rank=st.none() | st.integers(1, 1000),
    ),
)


@given(request=REQUESTS)
def test_a_request_arrives_as_it_was_sent(request: GenerationRequest) -> None:
    """A field lost on the way would change what is generated, without a word."""
    streamed = requests.generation_message(text_pb2.GenerateRequest, request)
    whole = requests.generation_message(text_pb2.GenerateOnceRequest, request)

    assert text_requests.generation_request(streamed, "unused") == request
    assert text_requests.generation_request(whole, "unused") == request


@given(event=STARTED | CHUNKS | FINISHED)
def test_an_event_arrives_as_it_was_sent(event: Started | Chunk | Finished) -> None:
    """Log-probabilities, seeds and times keep every digit."""
    assert replies.event(text_replies.event_message(event)) == event


@given(spec=LOADS)
def test_a_load_arrives_as_it_was_sent(spec: LoadSpec) -> None:
    """An override of zero differs from none."""
    assert adapters.load_spec(requests.load_message(spec)) == spec


@pytest.mark.parametrize("status", [adapter_status("a"), failed_status("b")])
def test_an_adapter_arrives_as_it_was_sent(status: object) -> None:
    """An operator sees all that the registry knows."""
    assert isinstance(status, type(adapter_status("a")))
    message = adapters.adapter_message(status)
    found = replies.adapter_status(message)

    assert found == status
    assert isinstance(found.created, datetime)


def test_unset_fields_are_left_to_the_server() -> None:
    """A newer server may have better defaults than this client."""
    message = requests.generation_message(
        text_pb2.GenerateRequest, GenerationRequest(prompt=TextPrompt(text="x"))
    )

    assert not message.sampling.ListFields()

"""Requests for text that are refused, and leave other streams alone."""

import math
from typing import Any

import grpc
import pytest

from lokr_serve.client import ClientError
from lokr_serve.client.errors import client_error
from lokr_serve.types import Finished, GenerationRequest, SamplingParams, TextPrompt
from lokr_serve.v1.common_pb2 import AdapterWeight
from lokr_serve.v1.text_pb2 import (
    ChatMessage,
    ChatMessages,
    GenerateRequest,
    TokenIds,
)
from lokr_serve.v1.text_pb2 import (
    SamplingParams as SamplingMessage,
)
from tests.serve.running import MAX_POSITIONS, Connection
from tests.tiny import VOCAB_SIZE

INVALID = grpc.StatusCode.INVALID_ARGUMENT
POET = AdapterWeight(adapter_id="poet")


def refusal(connection: Connection, request: GenerateRequest) -> ClientError:
    """Return the error that a request ends with, before any event."""
    call = connection.text.Generate(request, timeout=30)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return client_error(caught.value)


def sampling(**values: Any) -> GenerateRequest:
    """Return a request with these sampling values."""
    return GenerateRequest(text="x", sampling=SamplingMessage(**values))


def mix(*adapters: AdapterWeight) -> GenerateRequest:
    """Return a request for a mix."""
    return GenerateRequest(text="x", adapters=adapters)


def chat(role: str) -> GenerateRequest:
    """Return a request with one message."""
    return GenerateRequest(messages=ChatMessages(messages=[ChatMessage(role=role, content="x")]))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GenerateRequest(), "prompt"),
        (GenerateRequest(token_ids=TokenIds()), "token_ids.ids"),
        (GenerateRequest(token_ids=TokenIds(ids=[5, VOCAB_SIZE])), "token_ids.ids[1]"),
        (GenerateRequest(token_ids=TokenIds(ids=[5] * (MAX_POSITIONS + 1))), "token_ids.ids"),
        (GenerateRequest(text="x" * (40 * MAX_POSITIONS)), "text"),
        (GenerateRequest(messages=ChatMessages()), "messages.messages"),
        (chat("wizard"), "messages.messages[0].role"),
        (sampling(max_tokens=0), "sampling.max_tokens"),
        (sampling(temperature=-1), "sampling.temperature"),
        (sampling(temperature=math.nan), "sampling.temperature"),
        (sampling(top_p=0), "sampling.top_p"),
        (sampling(min_p=2), "sampling.min_p"),
        (sampling(repetition_penalty=0), "sampling.repetition_penalty"),
        (sampling(presence_penalty=3), "sampling.presence_penalty"),
        (sampling(frequency_penalty=-3), "sampling.frequency_penalty"),
        (sampling(stop=[""]), "sampling.stop"),
        (sampling(stop_token_ids=[VOCAB_SIZE]), "sampling.stop_token_ids"),
        (sampling(min_tokens=9, max_tokens=8), "sampling.min_tokens"),
        (sampling(logprobs=1000), "sampling.logprobs"),
        (sampling(n=0), "sampling.n"),
        (mix(AdapterWeight(adapter_id="../x")), "adapters[0].adapter_id"),
        (mix(POET, POET), "adapters[1].adapter_id"),
        (mix(AdapterWeight(adapter_id="poet", weight=math.nan)), "adapters[0].weight"),
        (mix(POET, AdapterWeight(adapter_id="pirate", weight=math.inf)), "adapters[1].weight"),
        (
            mix(AdapterWeight(adapter_id="poet", module_weights={"*.none": 1})),
            "adapters[0].module_weights",
        ),
        (mix(*(AdapterWeight(adapter_id=f"a{i}") for i in range(9))), "adapters"),
    ],
)
def test_a_request_that_can_never_be_right_is_refused_by_field(
    shared_server: Connection, request_: GenerateRequest, field: str
) -> None:
    """The caller learns which field to change; nothing is clamped or guessed."""
    error = refusal(shared_server, request_)

    assert error.code is INVALID
    assert error.reason == "INVALID_REQUEST"
    assert error.field is not None
    assert error.field.startswith(field)
    assert error.field in str(error)


def test_an_adapter_that_is_not_registered_is_not_found(shared_server: Connection) -> None:
    """The remedy is to load it, and the message says so."""
    error = refusal(shared_server, mix(AdapterWeight(adapter_id="nobody")))

    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "ADAPTER_NOT_FOUND"
    assert error.metadata["adapter_id"] == "nobody"
    assert "LoadAdapter" in str(error)


def test_a_deadline_that_has_passed_ends_the_call(shared_server: Connection) -> None:
    """Work that nobody waits for must not go on."""
    call = shared_server.text.Generate(sampling(max_tokens=8000, ignore_eos=True), timeout=0)

    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert client_error(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_refused_requests_leave_other_streams_alone(shared_server: Connection) -> None:
    """A caller's mistake is nobody else's problem."""
    plain = GenerationRequest(
        prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=60, seed=1, ignore_eos=True)
    )
    alone = shared_server.client.generate_once(plain)
    stream = shared_server.client.generate(plain)
    next(stream)
    for bad in (GenerateRequest(), mix(AdapterWeight(adapter_id="nobody")), sampling(n=0)):
        refusal(shared_server, bad)
    *chunks, finished = stream

    assert isinstance(finished, Finished)
    assert [t for c in chunks for t in getattr(c, "token_ids", ())] == list(
        alone.chunks[0].token_ids
    )

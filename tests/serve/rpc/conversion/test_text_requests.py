"""Requests for text that can never be right."""

import pytest

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.text_requests import generation_request
from lokr_serve.types import ApplyMode, SamplingParams, TextPrompt
from lokr_serve.v1 import text_pb2


def field_of_refusal(message: text_pb2.GenerateRequest) -> str:
    """Return the path of the field that a request is refused for."""
    with pytest.raises(InvalidRequestError) as caught:
        generation_request(message, "drawn")
    return caught.value.field


def test_a_request_without_a_prompt_is_refused() -> None:
    """An unset prompt differs from an empty text, and neither can be continued."""
    assert field_of_refusal(text_pb2.GenerateRequest()) == "prompt"


def test_an_unknown_way_of_application_is_refused() -> None:
    """A newer client may ask for what this server does not know; it must not get another way."""
    message = text_pb2.GenerateRequest(text="x")
    message.apply_mode = 7  # type: ignore[assignment]

    assert field_of_refusal(message) == "apply_mode"


@pytest.mark.parametrize("request_id", ["a b", "é", "x" * 129, "a\n"])
def test_an_id_that_does_not_fit_a_line_of_log_is_refused(request_id: str) -> None:
    """An id with a newline could forge log lines."""
    message = text_pb2.GenerateRequest(text="x", request_id=request_id)

    assert field_of_refusal(message) == "request_id"


def test_sampling_values_are_refused_by_their_path() -> None:
    """The path in the request is what a caller can look up."""
    message = text_pb2.GenerateRequest(
        text="x", sampling=text_pb2.SamplingParams(top_p=float("nan"))
    )

    assert field_of_refusal(message) == "sampling.top_p"


def test_zero_differs_from_unset() -> None:
    """A temperature of 0 is greedy, an unset one is 1; max_tokens of 0 is refused."""
    message = text_pb2.GenerateRequest(text="x", sampling=text_pb2.SamplingParams(temperature=0))

    assert generation_request(message, "drawn").sampling.is_greedy
    message.sampling.max_tokens = 0
    assert field_of_refusal(message) == "sampling.max_tokens"


def test_a_bare_request_gets_the_defaults() -> None:
    """What is unset takes the documented default, and the id of the call."""
    request = generation_request(text_pb2.GenerateRequest(text="x"), "drawn")

    assert request.request_id == "drawn"
    assert request.prompt == TextPrompt(text="x")
    assert (request.adapters, request.apply_mode) == ((), ApplyMode.AUTO)
    assert request.sampling == SamplingParams()


def test_an_unset_weight_is_one() -> None:
    """Naming an adapter applies it; a weight of 0 leaves it out."""
    message = text_pb2.GenerateRequest(text="x")
    message.adapters.add(adapter_id="poet")
    message.adapters.add(adapter_id="off", weight=0)

    assert [part.weight for part in generation_request(message, "drawn").adapters] == [1, 0]

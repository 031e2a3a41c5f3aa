"""The metadata of calls."""

import math

import pytest

from lokr_core import MixError
from lokr_serve.client import mix_name
from lokr_serve.client.requests import generation_metadata
from lokr_serve.types import AdapterWeight, GenerationRequest, TextPrompt

PROMPT = TextPrompt(text="x")


def test_the_mix_is_named_as_the_server_names_it() -> None:
    """A gateway that hashes the name sends equal mixes to one server, in whatever order."""
    adapters = (
        AdapterWeight(adapter_id="pirate"),
        AdapterWeight(adapter_id="off", weight=0),
        AdapterWeight(adapter_id="b/poet", weight=0.7),
    )

    assert mix_name(adapters) == "b/poet*0.7+pirate"


def test_module_weights_mark_the_name() -> None:
    """Two mixes that differ in a module are two mixes."""
    plain = AdapterWeight(adapter_id="poet")
    marked = AdapterWeight(adapter_id="poet", module_weights=(("*.mlp.*", 0.5),))

    assert mix_name([marked]).startswith("poet@")
    assert mix_name([marked]) != mix_name([plain])


@pytest.mark.parametrize("adapter_id", ["", "pünktchen", "a\udcff", "two\nlines"])
def test_what_is_no_id_is_refused_before_it_is_sent(adapter_id: str) -> None:
    """Metadata has no room for it, and grpc would only say that something is invalid."""
    with pytest.raises(MixError, match="is no adapter id"):
        mix_name([AdapterWeight(adapter_id=adapter_id)])


def test_the_base_model_has_no_mix_to_name() -> None:
    """An empty header would hash all base requests onto one server."""
    metadata = dict(generation_metadata(GenerationRequest(prompt=PROMPT)))

    assert set(metadata) == {"x-request-id"}


def test_a_request_keeps_its_own_id() -> None:
    """The id joins the caller's logs with the gateway's and the server's."""
    request = GenerationRequest(
        prompt=PROMPT, adapters=(AdapterWeight(adapter_id="poet"),), request_id="mine"
    )

    assert dict(generation_metadata(request)) == {
        "x-request-id": "mine",
        "x-lokr-adapter": "poet",
    }


def test_ids_differ_when_they_are_drawn() -> None:
    """Two requests must not share a line of log."""
    first, second = (generation_metadata(GenerationRequest(prompt=PROMPT)) for _ in range(2))

    assert first != second


def test_a_mix_that_has_no_name_is_refused_before_it_is_sent() -> None:
    """NaN has no place in a name, nor in a mix."""
    with pytest.raises(MixError, match="finite"):
        mix_name([AdapterWeight(adapter_id="poet", weight=math.nan)])

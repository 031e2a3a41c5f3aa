"""The metadata of calls."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lokr_core import MixError
from lokr_serve.client import AsyncClient, Client, gateway_model_name, mix_name
from lokr_serve.client.requests import Metadata, generation_metadata
from lokr_serve.types import AdapterWeight, GenerationRequest, TextPrompt
from lokr_serve.v1.text_pb2 import GenerateOnceRequest, GenerateOnceResponse, Started
from lokr_serve.v1.text_pb2_grpc import TextServiceServicer, add_TextServiceServicer_to_server

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


def test_a_gateway_is_told_the_mix_by_the_name_that_servers_tell_it() -> None:
    """It compares the two, and sends the call to where the mix is in memory."""
    request = GenerationRequest(
        prompt=PROMPT, adapters=(AdapterWeight(adapter_id="poet", weight=0.5),)
    )
    base = generation_metadata(GenerationRequest(prompt=PROMPT))

    assert gateway_model_name(generation_metadata(request)) == (
        ("x-llm-d-model-name-rewrite", "poet*0.5"),
    )
    assert gateway_model_name(base) == ()


class SeenMetadata(TextServiceServicer):
    """A server that notes the metadata of a call."""

    def __init__(self) -> None:
        self.seen: list[set[tuple[str, str | bytes]]] = []

    def GenerateOnce(  # noqa: N802 - the name of the method on the wire
        self, request: GenerateOnceRequest, context: grpc.ServicerContext
    ) -> GenerateOnceResponse:
        """Note it, and answer."""
        self.seen.append(set(context.invocation_metadata()))
        return GenerateOnceResponse(
            started=Started(apply_mode="APPLY_MODE_UNMERGED"), chunks=[], finished=[]
        )


async def test_both_clients_send_what_hooks_add() -> None:
    """A trace goes on in the server if its context is sent along."""
    servicer = SeenMetadata()
    server = grpc.server(ThreadPoolExecutor(1))
    add_TextServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    request = GenerationRequest(prompt=PROMPT, adapters=(AdapterWeight(adapter_id="poet"),))

    def trace(metadata: Metadata) -> Metadata:
        return (("traceparent", dict(metadata)["x-request-id"]),)

    hooks = (trace, gateway_model_name)
    with Client(address, hooks=hooks) as client:
        await asyncio.to_thread(client.generate_once, request)
    async with AsyncClient(address, hooks=hooks) as asynchronous:
        await asynchronous.generate_once(request)
    server.stop(0).wait()

    for seen in servicer.seen:
        metadata = dict(seen)
        assert metadata["traceparent"] == metadata["x-request-id"]
        assert metadata["x-llm-d-model-name-rewrite"] == "poet"
    assert len(servicer.seen) == 2

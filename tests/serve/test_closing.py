"""Calls that reach a server as it is told to stop."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import grpc

from lokr_serve.app import Addresses, serve
from lokr_serve.v1.text_pb2 import GenerateOnceRequest, GenerateOnceResponse
from lokr_serve.v1.text_pb2_grpc import TextServiceStub
from tests.serve.running import READY_SECONDS, tiny_settings

NUM_CALLS = 8

Pending: TypeAlias = "grpc._CallFuture[GenerateOnceResponse]"


def call_a_busy_server(channel: grpc.Channel) -> "Sequence[Pending]":
    """Send calls while the server's event loop, which is this thread's, takes none up."""
    stub = TextServiceStub(channel)
    request = GenerateOnceRequest(text="x")
    calls: Sequence[Pending] = [
        stub.GenerateOnce.future(request, timeout=READY_SECONDS) for _ in range(NUM_CALLS)
    ]
    time.sleep(0.3)  # for the calls to arrive
    return calls


async def test_calls_that_were_not_taken_up_when_it_stops_are_told_so(model_folder: Path) -> None:
    """Clients try again what is unavailable, but not what was cancelled, as grpc would do."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    settings = tiny_settings(model_folder)
    serving = asyncio.create_task(serve(settings, stop=stop, on_ready=ready.set_result))
    addresses: Addresses = await ready
    with grpc.insecure_channel(addresses.listen) as channel:
        await asyncio.to_thread(grpc.channel_ready_future(channel).result, READY_SECONDS)
        stop.set()
        calls = call_a_busy_server(channel)
        codes = await asyncio.to_thread(lambda: [call.code() for call in calls])
    await serving

    assert codes == [grpc.StatusCode.UNAVAILABLE] * NUM_CALLS

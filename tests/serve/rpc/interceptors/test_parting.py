"""The time between a stream's last event and its end while the server drains."""

import time
from pathlib import Path

from lokr_serve.rpc.interceptors.scopes import PARTING_SECONDS
from lokr_serve.v1.text_pb2 import GenerateRequest, SamplingParams
from tests.serve.running import connected, running_server, tiny_settings

NUM_TOKENS = 300


def test_a_stream_that_ends_while_draining_parts_from_its_last_event(model_folder: Path) -> None:
    """Its connection closes with it, and some gateways lose what they have not answered yet."""
    sampling = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    with (
        running_server(tiny_settings(model_folder)) as server,
        connected(server.ready.result()) as connection,
    ):
        call = connection.text.Generate(GenerateRequest(text="x", sampling=sampling))
        next(call)
        server.stop()
        arrivals = [time.monotonic() for _ in call]
        ended = time.monotonic()

    assert ended - arrivals[-1] > 0.9 * PARTING_SECONDS

"""Traffic: requests for adapters of which few are asked for often, and many seldom."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from benchmarks.fleet.picker import Picker
from benchmarks.fleet.routing import DESTINATION_KEY
from benchmarks.streams import greedy
from lokr_serve.client.requests import generation_message, generation_metadata
from lokr_serve.types import AdapterWeight, ApplyMode, GenerationRequest, TokenPrompt
from lokr_serve.v1 import text_pb2
from lokr_serve.v1.text_pb2_grpc import TextServiceStub

NUM_PROMPT_TOKENS, NUM_OUTPUT_TOKENS = 8, 4
TIMEOUT_SECONDS = 60.0
ZIPF_EXPONENT = 1.0


class Population:
    """Adapters, of which the one of rank r is asked for in proportion to 1 / r."""

    def __init__(self, ids: Sequence[str]) -> None:
        """Give ranks to the adapters, the same for every run."""
        shares = np.arange(1, len(ids) + 1, dtype=np.float64) ** -ZIPF_EXPONENT
        self._shares = shares / shares.sum()
        self._ids = np.random.default_rng(5).permutation(np.array(ids))

    def draw(self, count: int, seed: int) -> list[str]:
        """Return whom requests ask for, one after the other."""
        drawn = np.random.default_rng(seed).choice(self._ids, count, p=self._shares)
        return list(map(str, drawn))

    def share_of_first(self, count: int) -> float:
        """Return which part of the requests asks for so many of the most popular adapters."""
        return float(self._shares[:count].sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests for adapters, in this order."""

    ids: Sequence[str]
    vocab: int
    num_callers: int  # each waits for its reply before it asks again

    def requests(self) -> Iterator[GenerationRequest]:
        """Yield the requests, each with a prompt that no cache has seen."""
        draw = np.random.default_rng(len(self.ids))
        for adapter_id in self.ids:
            prompt = draw.integers(4, self.vocab, NUM_PROMPT_TOKENS).tolist()
            yield GenerationRequest(
                prompt=TokenPrompt(ids=tuple(prompt)),
                adapters=(AdapterWeight(adapter_id=adapter_id),),
                sampling=greedy(NUM_OUTPUT_TOKENS),
                apply_mode=ApplyMode.UNMERGED,
            )


async def send(address: str, traffic: Traffic, picker: Picker | None) -> list[float]:
    """Send requests to a gateway, and return the seconds that each took.

    Args:
        address: The gateway.
        traffic: The requests.
        picker: Who chooses replicas, where the gateway does not.
    """
    seconds: list[float] = []
    requests = traffic.requests()

    async def call_on(stub: TextServiceStub) -> None:
        for request in requests:
            adapter_id = request.adapters[0].adapter_id
            message = generation_message(text_pb2.GenerateOnceRequest, request)
            metadata = generation_metadata(request)
            if picker is not None:
                metadata = (*metadata, (DESTINATION_KEY, picker.pick(adapter_id)))
            began = time.perf_counter()
            await stub.GenerateOnce(message, metadata=metadata, timeout=TIMEOUT_SECONDS)
            seconds.append(time.perf_counter() - began)

    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for _ in range(traffic.num_callers):
            group.create_task(call_on(TextServiceStub(channel)))
    return seconds

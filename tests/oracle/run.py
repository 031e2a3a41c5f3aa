"""One run of the oracle: requests, swaps, and the verdict on every answer."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from transformers.generation.continuous_batching.requests import RequestState

from tests.oracle.clients import Answer, Clients, Operator
from tests.oracle.peers import Architecture, Peers
from tests.oracle.stage import Stage
from tests.oracle.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What happened around the requests."""

    swaps: dict[str, int]
    refusals: dict[str, int]
    evictions: int
    preemptions: int
    merges: int
    cached_prompt_tokens: int
    failed_steps: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """The answers of a run, not yet judged."""

    answers: list[Answer]
    conditions: Conditions


async def serve(architecture: Architecture, peers: Peers, *, num_requests: int, seed: int) -> Run:
    """Send random requests in float64 while adapters are swapped."""
    traffic = Traffic(architecture, seed)
    requests = [traffic.request(number) for number in range(num_requests)]
    with _counted_preemptions() as preemptions:
        async with Stage(architecture, peers, torch.float64).running() as stage:
            clients, operator, done = Clients(stage), Operator(stage, seed), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(operator.swap_until(done))
                answers = await clients.send_all(requests)
                done.set()
    value = stage.metrics.registry.get_sample_value
    return Run(
        answers=answers,
        conditions=Conditions(
            swaps=dict(operator.swaps),
            refusals=dict(clients.refusals),
            evictions=int(value("lokr_serve_adapter_evictions_total", {"reason": "budget"}) or 0),
            preemptions=preemptions.total(),
            merges=int(value("lokr_serve_merges_total") or 0),
            cached_prompt_tokens=int(value("lokr_serve_cached_prompt_tokens_total") or 0),
            failed_steps=int(value("lokr_serve_step_failures_total") or 0),
        ),
    )


@contextmanager
def _counted_preemptions() -> Iterator[Counter[str]]:
    """Count the rows that lose their place in the key-value cache and start over."""
    counter: Counter[str] = Counter()
    restart = RequestState.create_equivalent_initial_request

    def counted(state: RequestState) -> RequestState:
        counter[state.request_id] += 1
        return restart(state)

    with patch.object(RequestState, "create_equivalent_initial_request", counted):
        yield counter

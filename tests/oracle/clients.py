"""Clients that send the planned requests, and an operator who swaps adapters meanwhile."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from lokr_core import Apply
from lokr_serve.adapters import Lease
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterBusyError,
    AdapterDrainingError,
    AdapterNotFoundError,
    AdapterUnloadedError,
)
from lokr_serve.interruption import Interruption
from lokr_serve.text import Generation
from lokr_serve.types import Finished, GenerationEvent, TokenLogprob
from tests.oracle.peers import AdapterFile
from tests.oracle.stage import Stage
from tests.oracle.traffic import PlannedRequest

MAX_CLIENTS = 14
MEAN_SWAP_GAP_SECONDS = 0.04
DRAIN_SECONDS = 0.05
REFUSALS = (
    AdapterNotFoundError,
    AdapterDrainingError,
    AdapterBusyError,
    AdapterBudgetError,
    AdapterUnloadedError,
)


@dataclass(slots=True, kw_only=True)
class Received:
    """What a client got of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a client got for a request, and from which adapters."""

    request: PlannedRequest
    files: Mapping[str, AdapterFile]  # by adapter id
    apply: Apply
    sequences: Sequence[Received]
    end: str = "finished"  # or "cancelled", or "unloaded"

    def add(self, event: GenerationEvent) -> None:
        """Note an event."""
        sequence = self.sequences[event.index]
        assert sequence.finished is None, "an event came after the end of its sequence"
        if isinstance(event, Finished):
            sequence.finished = event
        else:
            sequence.token_ids += event.token_ids
            sequence.logprobs += event.logprobs


class Clients:
    """Sends requests at random times; who is refused tries again when something has changed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._places = asyncio.Semaphore(MAX_CLIENTS)
        self.refusals: Counter[str] = Counter()

    async def send_all(self, requests: Sequence[PlannedRequest]) -> list[Answer]:
        """Return the answer of every request."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            for request in requests:
                await asyncio.sleep(request.gap_seconds)
                await self._places.acquire()
                tasks.append(group.create_task(self._send(request)))
        return [task.result() for task in tasks]

    async def _send(self, request: PlannedRequest) -> Answer:
        try:
            while True:
                changed = self._stage.changed
                try:
                    return await self._load_and_try(request)
                except REFUSALS as error:
                    self.refusals[type(error).__name__] += 1
                    await changed.wait()
        finally:
            self._places.release()
            self._stage.notify()

    async def _load_and_try(self, request: PlannedRequest) -> Answer:
        """Send a request, loading what was unloaded before."""
        while True:
            try:
                return await self._try(request)
            except AdapterNotFoundError as error:
                self.refusals[type(error).__name__] += 1
                await self._stage.load(self._stage.files[error.adapter_id][0])

    async def _try(self, request: PlannedRequest) -> Answer:
        stage = self._stage
        before = {part.adapter_id: stage.num_published(part.adapter_id) for part in request.parts}
        async with stage.registry.lease(request.parts, request.mode) as lease:
            refs = [part.ref for part in lease.mix.parts]
            answer = Answer(
                request=request,
                files={r.adapter_id: stage.find(r, before[r.adapter_id]) for r in refs},
                apply=lease.apply,
                sequences=[Received() for _ in range(request.sampling.n)],
            )
            await self._read(answer, lease)
        return answer

    async def _read(self, answer: Answer, lease: Lease) -> None:
        request = answer.request
        generation = Generation(
            request_id=f"request-{request.number}",
            mix=lease.mix,
            apply=lease.apply,
            prompt_ids=request.prompt_ids,
            sampling=request.sampling,
            seed=request.seed,
            accepted_at=time.monotonic(),
            salt=request.salt,
        )
        try:
            async with (
                Interruption(lease.ended, AdapterUnloadedError),
                asyncio.timeout(request.cancel_seconds),
                aclosing(self._stage.engine.generate(generation)) as events,
            ):
                async for event in events:
                    answer.add(event)
                    if len(answer.sequences[0].token_ids) >= (request.cancel_tokens or 1000):
                        answer.end = "cancelled"
                        return
        except TimeoutError:
            answer.end = "cancelled"
        except AdapterUnloadedError:
            answer.end = "unloaded"


class Operator:
    """Replaces and unloads adapters at random times until cancelled."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._draws = random.Random(seed)
        self.swaps: Counter[str] = Counter()

    async def swap_until(self, done: asyncio.Event) -> None:
        """Swap adapters until an event is set."""
        while not done.is_set():
            gap = self._draws.expovariate(1 / MEAN_SWAP_GAP_SECONDS)
            await asyncio.sleep(gap)
            await self._swap()

    async def _swap(self) -> None:
        adapter_id = self._draws.choice(list(self._stage.files))
        kind = self._draws.choice(["load"] * 12 + ["unload"] * 3 + ["unload by force"])
        try:
            if kind == "load":
                await self._stage.load(self._draws.choice(self._stage.files[adapter_id]))
            else:
                force = kind == "unload by force"
                await self._stage.registry.unload(
                    adapter_id, drain_seconds=DRAIN_SECONDS, force=force
                )
        except REFUSALS as error:
            kind += f" ({type(error).__name__})"
        self.swaps[kind] += 1
        self._stage.notify()

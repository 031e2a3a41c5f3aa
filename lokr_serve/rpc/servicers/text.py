"""TextService: converts, leases the mix, and streams what the engine makes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from grpc.aio import ServicerContext

from lokr_serve.adapters import Lease
from lokr_serve.calls import phase
from lokr_serve.logs import request_id_variable
from lokr_serve.rpc.conversion.completion import Completion
from lokr_serve.rpc.conversion.text_replies import event_message
from lokr_serve.rpc.conversion.text_requests import generation_request
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.servicers.accepted import leased, permitted_ids, resolved, seed_or_drawn
from lokr_serve.rpc.servicers.admission import Admission, Arrival, Visit
from lokr_serve.rpc.servicers.timeline import text_timeline
from lokr_serve.text import Generation
from lokr_serve.types import ApplyMode, Chunk, Finished, GenerationRequest, Started
from lokr_serve.v1.text_pb2 import (
    GenerateOnceRequest,
    GenerateOnceResponse,
    GenerateRequest,
    GenerateResponse,
)
from lokr_serve.v1.text_pb2_grpc import TextServiceServicer

Emit = Callable[[Started | Chunk | Finished], Awaitable[None]]
Request = GenerateRequest | GenerateOnceRequest

TOKEN_BYTES = 36  # of one id in a tuple: a pointer, and an int


class TextServicer(TextServiceServicer):
    """Serves text from whatever is behind the gate."""

    def __init__(self, gate: Gate, admission: Admission) -> None:
        self._gate = gate
        self._admission = admission

    async def Generate(
        self, request: GenerateRequest, context: ServicerContext[GenerateRequest, GenerateResponse]
    ) -> None:
        """Stream the events of one request."""

        async def write(event: Started | Chunk | Finished) -> None:
            await context.write(event_message(event))

        await self._serve(request, context.time_remaining, write)

    async def GenerateOnce(
        self,
        request: GenerateOnceRequest,
        context: ServicerContext[GenerateOnceRequest, GenerateOnceResponse],
    ) -> GenerateOnceResponse:
        """Return all events of one request, those of each sequence put together."""
        completion = Completion()

        async def add(event: Started | Chunk | Finished) -> None:
            completion.add(event)

        await self._serve(request, context.time_remaining, add)
        return completion.message()

    async def _serve(
        self, message: Request, time_left: Callable[[], float | None], emit: Emit
    ) -> None:
        """Run a request to its end; whatever it holds is released on every way out."""
        self._admission.refuse_late(time_left())
        request = _read(message)
        backend = self._gate.text()
        arrival = Arrival(
            priority=request.priority,
            adapter_ids=permitted_ids(backend.registry, request.adapters),
            num_bytes=2 * message.ByteSize(),  # the message, and the values read from it
            time_left=time_left,
        )
        async with self._admission.visit(arrival) as visit:
            with phase("tokenize"):
                prompt_ids = await asyncio.to_thread(backend.encoder.encode, request.prompt)
            visit.hold(TOKEN_BYTES * len(prompt_ids))
            async with leased(backend.registry, request.adapters, request.apply_mode) as lease:
                generation = _generation(request, lease, prompt_ids, visit)
                backend.engine.check(generation)
                await emit(_started(generation))
                async with (
                    text_timeline(generation) as see,
                    aclosing(backend.engine.generate(generation, visit.begin)) as events,
                ):
                    async for event in events:
                        see(event)
                        await emit(event)


def _read(message: Request) -> GenerationRequest:
    request = generation_request(message, request_id_variable.get())
    request_id_variable.set(request.request_id)
    return request


def _generation(
    request: GenerationRequest, lease: Lease, prompt_ids: tuple[int, ...], visit: Visit
) -> Generation:
    return Generation(
        request_id=request.request_id,
        mix=lease.mix,
        apply=lease.apply,
        prompt_ids=prompt_ids,
        sampling=request.sampling,
        seed=seed_or_drawn(request.sampling.seed),
        accepted_at=visit.accepted_at,
        client=visit.client,
        salt=visit.client,  # nobody learns by time what others have asked
        priority=request.priority,
        deadline=visit.deadline,
    )


def _started(generation: Generation) -> Started:
    return Started(
        request_id=generation.request_id,
        prompt_tokens=len(generation.prompt_ids),
        adapters=resolved(generation.mix),
        mix_name=generation.mix.name,
        apply_mode=ApplyMode[generation.apply.name],
        seed=generation.seed,
    )

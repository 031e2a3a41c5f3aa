"""ImageService: converts, plans, leases the mix, and streams what the engine makes of it."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from grpc.aio import ServicerContext

from lokr_serve.adapters import Lease, Workload
from lokr_serve.calls import phase
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.plan import ImagePlan
from lokr_serve.logs import request_id_variable
from lokr_serve.rpc.conversion.image_replies import chunk_messages, event_message, image_files
from lokr_serve.rpc.conversion.image_requests import image_request
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.servicers.accepted import leased, permitted_ids, resolved, seed_or_drawn
from lokr_serve.rpc.servicers.admission import Admission, Arrival, Visit
from lokr_serve.rpc.servicers.timeline import image_timeline
from lokr_serve.types import (
    ApplyMode,
    GeneratedImage,
    ImageEvent,
    ImageRequest,
    ImageStarted,
)
from lokr_serve.v1.images_pb2 import GenerateImageRequest, GenerateImageResponse
from lokr_serve.v1.images_pb2_grpc import ImageServiceServicer

Context = ServicerContext[GenerateImageRequest, GenerateImageResponse]


class ImageServicer(ImageServiceServicer):
    """Serves images from whatever is behind the gate."""

    def __init__(self, gate: Gate, admission: Admission) -> None:
        self._gate = gate
        self._admission = admission

    async def GenerateImage(self, request: GenerateImageRequest, context: Context) -> None:
        """Stream the events of one request; whatever it holds is released on every way out."""
        self._admission.refuse_late(context.time_remaining())
        wanted = image_request(request, request_id_variable.get())
        request_id_variable.set(wanted.request_id)
        backend = self._gate.images()
        arrival = Arrival(
            priority=wanted.priority,
            adapter_ids=permitted_ids(backend.registry, wanted.adapters),
            num_bytes=2 * request.ByteSize(),  # the message, and the values read from it
            time_left=context.time_remaining,
        )
        async with self._admission.visit(arrival) as visit:
            seed = seed_or_drawn(wanted.params.seed)
            with phase("plan"):
                plan = await asyncio.to_thread(backend.factory.plan, wanted, seed)
            visit.hold(plan.num_image_bytes)
            workload = Workload(
                rows_per_step=backend.factory.rows_per_step(plan), num_steps=plan.num_run_steps
            )
            async with leased(backend.registry, wanted.adapters, _mode(wanted), workload) as lease:
                generation = _generation(wanted, plan, lease, visit)
                backend.engine.check(generation)
                await context.write(event_message(_started(generation)))
                async with (
                    image_timeline(generation) as see,
                    aclosing(backend.engine.generate(generation, visit.begin)) as events,
                ):
                    async for event in events:
                        see(event)
                        await _write(event, context)


def _mode(request: ImageRequest) -> ApplyMode:
    """Weights that change over the steps have no merged form that a request could keep."""
    return ApplyMode.UNMERGED if request.schedules else request.apply_mode


def _generation(
    request: ImageRequest, plan: ImagePlan, lease: Lease, visit: Visit
) -> ImageGeneration:
    return ImageGeneration(
        request=_by_id(request, lease.ids),
        plan=plan,
        mix=lease.mix,
        apply=lease.apply,
        accepted_at=visit.accepted_at,
        client=visit.client,
        deadline=visit.deadline,
    )


def _by_id(request: ImageRequest, ids: Sequence[str]) -> ImageRequest:
    """Return a request with the ids that its names stood for when its mix was leased."""
    meant = {given.adapter_id: id_ for given, id_ in zip(request.adapters, ids, strict=True)}
    adapters = (replace(each, adapter_id=meant[each.adapter_id]) for each in request.adapters)
    schedules = (replace(each, adapter_id=meant[each.adapter_id]) for each in request.schedules)
    return replace(request, adapters=tuple(adapters), schedules=tuple(schedules))


def _started(generation: ImageGeneration) -> ImageStarted:
    plan = generation.plan
    return ImageStarted(
        request_id=generation.request.request_id,
        adapters=resolved(generation.mix),
        mix_name=generation.mix.name,
        apply_mode=ApplyMode[generation.apply.name],
        seed=plan.seeds[0],
        width=plan.width,
        height=plan.height,
        num_steps=plan.num_run_steps,
        scheduler=plan.scheduler,
    )


async def _write(event: ImageEvent, context: Context) -> None:
    match event:
        case GeneratedImage():
            for file in await asyncio.to_thread(image_files, event):
                for message in chunk_messages(file):
                    await context.write(message)
        case _:
            await context.write(event_message(event))

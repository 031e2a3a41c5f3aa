"""From an ImageRequest to its message."""

from lokr_serve.client.requests import adapter_message
from lokr_serve.types import ImageOutput, ImageParams, ImageRequest, InitImage, WeightSchedule
from lokr_serve.v1 import images_pb2


def image_message(request: ImageRequest) -> images_pb2.GenerateImageRequest:
    """Write a request for images; what is None stays unset."""
    return images_pb2.GenerateImageRequest(
        request_id=request.request_id,
        adapters=map(adapter_message, request.adapters),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        params=_params_message(request.params),
        output=_output_message(request.output),
        apply_mode=f"APPLY_MODE_{request.apply_mode.name}",
        priority=f"PRIORITY_{request.priority.name}",
        schedules=map(_schedule_message, request.schedules),
    )


def _params_message(params: ImageParams) -> images_pb2.ImageParams:
    image = params.init_image
    return images_pb2.ImageParams(
        width=params.width,
        height=params.height,
        num_steps=params.num_steps,
        guidance_scale=params.guidance_scale,
        true_cfg_scale=params.true_cfg_scale,
        seed=params.seed,
        scheduler=params.scheduler,
        num_images=params.num_images,
        init_image=None if image is None else _init_image_message(image),
    )


def _init_image_message(image: InitImage) -> images_pb2.InitImage:
    return images_pb2.InitImage(data=image.data, strength=image.strength)


def _output_message(output: ImageOutput) -> images_pb2.ImageOutput:
    return images_pb2.ImageOutput(
        format=f"IMAGE_FORMAT_{output.format.name}",
        quality=output.quality,
        latents=output.latents,
        metadata=output.metadata,
        preview_interval=output.preview_interval,
    )


def _schedule_message(schedule: WeightSchedule) -> images_pb2.WeightSchedule:
    return images_pb2.WeightSchedule(
        adapter_id=schedule.adapter_id,
        points=[
            images_pb2.ScheduledFactor(step=point.step, factor=point.factor)
            for point in schedule.points
        ],
    )

"""From ImageService's requests to the values of ``lokr_serve.types``, checked."""

from types import MappingProxyType

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.mix_fields import adapter_weights, apply_mode, priority, request_id
from lokr_serve.types import (
    ImageFormat,
    ImageOutput,
    ImageParams,
    ImageRequest,
    InitImage,
    ScheduledFactor,
    WeightSchedule,
)
from lokr_serve.v1 import images_pb2

_FORMATS = MappingProxyType(
    {
        images_pb2.IMAGE_FORMAT_UNSPECIFIED: ImageFormat.PNG,
        images_pb2.IMAGE_FORMAT_PNG: ImageFormat.PNG,
        images_pb2.IMAGE_FORMAT_WEBP: ImageFormat.WEBP,
        images_pb2.IMAGE_FORMAT_JPEG: ImageFormat.JPEG,
        images_pb2.IMAGE_FORMAT_RAW: ImageFormat.RAW,
    }
)


def image_request(
    message: images_pb2.GenerateImageRequest, default_request_id: str
) -> ImageRequest:
    """Read a request.

    Args:
        message: The request.
        default_request_id: The id for a request that does not bring its own.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    has_negative_prompt = message.HasField("negative_prompt")
    return ImageRequest(
        request_id=request_id(message.request_id, default_request_id),
        adapters=adapter_weights(message.adapters),
        prompt=message.prompt,
        negative_prompt=message.negative_prompt if has_negative_prompt else None,
        params=_params(message.params),
        output=_output(message.output),
        apply_mode=apply_mode(message.apply_mode),
        priority=priority(message.priority),
        schedules=tuple(
            _schedule(index, schedule) for index, schedule in enumerate(message.schedules)
        ),
    )


def _params(message: images_pb2.ImageParams) -> ImageParams:
    """Read the fields that are set; their names are those of ImageParams."""
    given = {field.name: value for field, value in message.ListFields()}
    if message.HasField("init_image"):
        given["init_image"] = _init_image(message.init_image)
    return ImageParams(**given)


def _init_image(message: images_pb2.InitImage) -> InitImage:
    return InitImage(
        data=message.data, strength=message.strength if message.HasField("strength") else None
    )


def _output(message: images_pb2.ImageOutput) -> ImageOutput:
    if message.format not in _FORMATS:
        raise InvalidRequestError(
            "output.format", f"{message.format} is not a value of ImageFormat"
        )
    return ImageOutput(
        format=_FORMATS[message.format],
        quality=message.quality if message.HasField("quality") else None,
        latents=message.latents,
        metadata=message.metadata,
        preview_interval=message.preview_interval,
    )


def _schedule(index: int, message: images_pb2.WeightSchedule) -> WeightSchedule:
    points = tuple(
        ScheduledFactor(step=point.step, factor=point.factor) for point in message.points
    )
    try:
        return WeightSchedule(adapter_id=message.adapter_id, points=points)
    except InvalidRequestError as error:  # which does not know where in the request it is
        raise InvalidRequestError(f"schedules[{index}].points", error.problem) from error

"""Requests for images that can never be right, and what unset means."""

import math

import pytest

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.image_requests import image_request
from lokr_serve.types import ImageOutput, ImageParams, ImageRequest
from lokr_serve.v1 import images_pb2
from lokr_serve.v1.common_pb2 import APPLY_MODE_MERGED, AdapterWeight
from lokr_serve.v1.images_pb2 import (
    IMAGE_FORMAT_RAW,
    GenerateImageRequest,
    InitImage,
    ScheduledFactor,
    WeightSchedule,
)
from lokr_serve.v1.images_pb2 import (
    ImageParams as ParamsMessage,
)

POET = AdapterWeight(adapter_id="poet")


def schedule(*points: tuple[int, float], adapter_id: str = "poet") -> WeightSchedule:
    """Return the schedule of one adapter."""
    factors = [ScheduledFactor(step=step, factor=factor) for step, factor in points]
    return WeightSchedule(adapter_id=adapter_id, points=factors)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (GenerateImageRequest(request_id="a b"), "request_id"),
        (GenerateImageRequest(prompt="x" * 65537), "prompt"),
        (GenerateImageRequest(params=ParamsMessage(width=0)), "params.width"),
        (GenerateImageRequest(params=ParamsMessage(height=0)), "params.height"),
        (GenerateImageRequest(params=ParamsMessage(num_steps=0)), "params.num_steps"),
        (
            GenerateImageRequest(params=ParamsMessage(guidance_scale=math.nan)),
            "params.guidance_scale",
        ),
        (GenerateImageRequest(params=ParamsMessage(true_cfg_scale=-1)), "params.true_cfg_scale"),
        (GenerateImageRequest(params=ParamsMessage(num_images=0)), "params.num_images"),
        (
            GenerateImageRequest(params=ParamsMessage(init_image=InitImage(strength=0))),
            "params.init_image.strength",
        ),
        (GenerateImageRequest(output=images_pb2.ImageOutput(quality=50)), "output.quality"),
        (
            GenerateImageRequest(
                output=images_pb2.ImageOutput(format=IMAGE_FORMAT_RAW, metadata=True)
            ),
            "output.metadata",
        ),
        (GenerateImageRequest(adapters=[POET], schedules=[schedule()]), "schedules[0].points"),
        (
            GenerateImageRequest(adapters=[POET], schedules=[schedule((1, 1), (1, 0))]),
            "schedules[0].points",
        ),
        (
            GenerateImageRequest(adapters=[POET], schedules=[schedule((1, math.inf))]),
            "schedules[0].points",
        ),
        (
            GenerateImageRequest(
                adapters=[AdapterWeight(adapter_id="poet", module_weights={"*": 1e200})],
                schedules=[schedule((0, 1), (1, -1e200))],
            ),
            "schedules[0].points",
        ),
        (
            GenerateImageRequest(adapters=[POET], schedules=[schedule((0, 1), adapter_id="b")]),
            "schedules[0].adapter_id",
        ),
        (
            GenerateImageRequest(
                adapters=[POET], schedules=[schedule((0, 1))], apply_mode=APPLY_MODE_MERGED
            ),
            "apply_mode",
        ),
    ],
)
def test_a_value_that_can_never_be_right_is_refused_by_its_path(
    message: GenerateImageRequest, field: str
) -> None:
    """A form shows the problem beside the input that caused it."""
    with pytest.raises(InvalidRequestError) as caught:
        image_request(message, "drawn")

    assert caught.value.field == field


def test_an_unknown_format_is_refused() -> None:
    """A newer client may ask for what this server does not know; it must not get PNG."""
    message = GenerateImageRequest()
    message.output.format = 77  # type: ignore[assignment]

    with pytest.raises(InvalidRequestError, match="77") as caught:
        image_request(message, "drawn")
    assert caught.value.field == "output.format"


def test_a_bare_request_gets_the_defaults() -> None:
    """What is unset takes the pipeline's own default, and the id of the call."""
    request = image_request(GenerateImageRequest(prompt="x"), "drawn")

    assert request == ImageRequest(prompt="x", request_id="drawn")
    assert (request.params, request.output) == (ImageParams(), ImageOutput())
    assert request.negative_prompt is None


def test_zero_and_empty_differ_from_unset() -> None:
    """No guidance is not the default guidance, and no image is not an empty one."""
    message = GenerateImageRequest(
        negative_prompt="",
        params=ParamsMessage(guidance_scale=0, seed=0, init_image=InitImage()),
    )
    request = image_request(message, "drawn")

    assert request.negative_prompt == ""
    assert (request.params.guidance_scale, request.params.seed) == (0, 0)
    assert request.params.init_image is not None
    assert request.params.init_image.strength is None

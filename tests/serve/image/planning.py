"""Requests and planners of tiny pipelines, for the tests of plans."""

from functools import cache
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from lokr_serve.config import ImageSettings
from lokr_serve.image.families import family_of
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.plan import ImagePlan
from lokr_serve.image.planner import Planner
from lokr_serve.types import ImageParams, ImageRequest, InitImage
from tests.serve.image.image_files import encoded, picture
from tests.tiny.pipelines import make_pipeline

SETTINGS = ImageSettings(max_rows=8, max_pixels=512 * 512, max_steps=100)
SIZE: Any = {"width": 32, "height": 32}
SD3, XL = "stable-diffusion-3", "stable-diffusion-xl"


@cache
def tiny(name: str) -> DiffusionPipeline:
    """Return a tiny pipeline, made once."""
    return make_pipeline(name)


def planner(name: str, **config: object) -> Planner:
    """Return a planner of a tiny pipeline, whose config says something else where given."""
    pipeline = tiny(name)
    if config:
        pipeline = make_pipeline(name)
        pipeline.register_to_config(**config)
    family = family_of(type(pipeline).__name__)
    return Planner(LoadedPipeline(family=family, pipeline=pipeline), SETTINGS)


def request(
    *,
    prompt: str = "a fox",
    negative: str | None = None,
    image: tuple[int, int] | None = None,
    strength: float | None = None,
    **params: Any,
) -> ImageRequest:
    """Return a request, from an image of this size where one is given."""
    if image is not None:
        data = encoded(picture(size=image))
        params["init_image"] = InitImage(data=data, strength=strength)
    return ImageRequest(prompt=prompt, negative_prompt=negative, params=ImageParams(**params))


def plan(name: str, **asked: Any) -> ImagePlan:
    """Return the plan of a request to a tiny pipeline."""
    return planner(name).plan(request(**asked), seed=7)

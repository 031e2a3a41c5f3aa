"""Planner: what a request asks for, held against the model and filled in, before any work."""

import hashlib
import inspect
from dataclasses import dataclass
from typing import cast

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL.Image import Image

from lokr_serve.config import ImageSettings
from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.families import Family, pipeline_class
from lokr_serve.image.guidance import GuidanceScales, choose_guidance
from lokr_serve.image.init_image import decode_init_image
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.plan import ImagePlan
from lokr_serve.image.schedulers import choose_scheduler
from lokr_serve.image.sizes import image_sizes
from lokr_serve.image.steps import check_scheduler_steps, num_steps_left
from lokr_serve.image.tokenizers import PromptForm
from lokr_serve.types import ImageRequest, image_seeds

_IMAGE_TOKEN = "[IMG]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    """What a stock pipeline's call takes unasked."""

    num_steps: int
    strength: float | None
    scales: GuidanceScales


class Planner:
    """Makes plans of requests; may be used by several threads at once."""

    def __init__(self, loaded: LoadedPipeline, settings: ImageSettings) -> None:
        self._family = loaded.family
        self._pipeline = loaded.pipeline
        self._settings = settings
        self._sizes = image_sizes(loaded.family, loaded.pipeline, settings.max_pixels)
        self._from_text = pipeline_class(loaded.family.text_to_image)
        self._from_image = pipeline_class(loaded.family.image_to_image)

    def plan(self, request: ImageRequest, seed: int) -> ImagePlan:
        """Return how a request's pipeline will run; decodes its init image, so it takes a moment.

        Args:
            request: What is asked.
            seed: Of the first image; each further one has the next.

        Raises:
            InvalidRequestError: The model cannot do what is asked, would ignore a part of it, or
                the settings forbid it; ``field`` is its path in the request.
        """
        params = request.params
        init = params.init_image
        image = None if init is None else decode_init_image(init.data, self._settings.max_pixels)
        width, height = self._sizes.choose(params, image)
        made_by = self._from_text if image is None else self._from_image
        defaults = _defaults(made_by)
        guidance = choose_guidance(request, self._family, self._pipeline, defaults.scales)
        scheduler, num_steps = self._scheduler(request, defaults, image)
        strength, num_run_steps = self._strength(request, defaults, num_steps)
        _check_schedules(request, num_run_steps)
        self._check_prompts(request)
        return ImagePlan(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=width,
            height=height,
            num_steps=num_steps,
            num_run_steps=num_run_steps,
            guidance_scale=guidance.scales.guidance,
            true_cfg_scale=guidance.scales.true_cfg,
            seeds=image_seeds(seed, params.num_images),
            scheduler=scheduler,
            init_image=image,
            init_digest=None if init is None else hashlib.sha256(init.data).hexdigest(),
            strength=strength,
            max_rows=self._rows(params.num_images, guidance.rows_per_image),
        )

    def _scheduler(
        self, request: ImageRequest, defaults: _Defaults, image: Image | None
    ) -> tuple[str, int]:
        """Return the scheduler's class and the number of its steps."""
        own: SchedulerMixin = self._pipeline.components["scheduler"]
        asked = request.params.scheduler
        has_image = image is not None
        name = choose_scheduler(asked, own, self._family.name, has_init_image=has_image)
        num_steps = request.params.num_steps or defaults.num_steps
        if num_steps > self._settings.max_steps:
            raise InvalidRequestError(
                "params.num_steps",
                f"{num_steps} is more than {self._settings.max_steps}; use fewer",
            )
        check_scheduler_steps(own, name, num_steps)
        return name, num_steps

    def _strength(
        self, request: ImageRequest, defaults: _Defaults, num_steps: int
    ) -> tuple[float | None, int]:
        """Return the strength, None where there is none, and the steps that it leaves to run."""
        init = request.params.init_image
        if init is None:
            return None, num_steps
        if not self._family.has_strength:
            if init.strength is not None:
                raise InvalidRequestError(
                    "params.init_image.strength",
                    "this model looks at the image and runs every step; leave it out",
                )
            return None, num_steps
        strength = defaults.strength if init.strength is None else init.strength
        assert strength is not None, "a pipeline that has a strength has a default for it"
        return strength, num_steps_left(self._from_image, num_steps, strength)

    def _rows(self, num_images: int, rows_per_image: int) -> int:
        num_rows = num_images * rows_per_image
        if num_rows > self._settings.max_rows:
            most = self._settings.max_rows // rows_per_image
            raise InvalidRequestError(
                "params.num_images",
                f"{num_images} images are {num_rows} rows of a batch, more than "
                f"{self._settings.max_rows}; ask for at most {most} at a time",
            )
        return num_rows

    def _check_prompts(self, request: ImageRequest) -> None:
        for field, text in (
            ("prompt", request.prompt),
            ("negative_prompt", request.negative_prompt),
        ):
            if text is not None:
                _check_length(field, text, self._family, self._pipeline)


def _defaults(made_by: type[DiffusionPipeline]) -> _Defaults:
    parameters = inspect.signature(made_by.__call__).parameters

    def default(name: str) -> float | None:
        parameter = parameters.get(name)
        return None if parameter is None else cast("float | None", parameter.default)

    return _Defaults(
        num_steps=parameters["num_inference_steps"].default,
        strength=default("strength"),
        scales=GuidanceScales(
            guidance=default("guidance_scale"), true_cfg=default("true_cfg_scale")
        ),
    )


def _check_length(field: str, text: str, family: Family, pipeline: DiffusionPipeline) -> None:
    """Refuse a text of which no encoder sees the end."""
    readers = [reader for reader in family.text_encoders if reader.is_in(pipeline)]
    if any(reader.form is PromptForm.SYSTEM_CHAT for reader in readers) and _IMAGE_TOKEN in text:
        raise InvalidRequestError(field, f"must not contain {_IMAGE_TOKEN}, which would be dropped")
    best = max(readers, key=lambda reader: reader.limit(pipeline))
    counts = {reader.component: reader.count(pipeline, text) for reader in readers}
    if all(counts[reader.component] > reader.limit(pipeline) for reader in readers):
        raise InvalidRequestError(
            field,
            f"has {counts[best.component]} tokens of {best.component}, which would be cut off "
            f"after {best.limit(pipeline)}; shorten it",
        )


def _check_schedules(request: ImageRequest, num_run_steps: int) -> None:
    for index, schedule in enumerate(request.schedules):
        last = schedule.points[-1].step
        if last >= num_run_steps:
            raise InvalidRequestError(
                f"schedules[{index}].points",
                f"step {last} is never run: there are {num_run_steps}, counted from 0",
            )

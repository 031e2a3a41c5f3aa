"""Pipelines: a stock pipeline of diffusers for each request, over components that all share."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL.Image import Image
from torch import Tensor

from lokr_serve.config import ImageSettings
from lokr_serve.image.families import Family, Guidance
from lokr_serve.image.load import LoadedPipeline, build_pipeline
from lokr_serve.image.plan import ImagePlan, PipelineResult
from lokr_serve.image.planner import Planner
from lokr_serve.image.rows import mean_rows
from lokr_serve.image.schedulers import make_scheduler
from lokr_serve.types import ImageRequest

LATENTS = "latents"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepDone:
    """A step of a scheduler is done."""

    step: int  # so many are done: from 1 to num_steps
    num_steps: int
    latents: Tensor  # [num_images, ...], in the pipeline's own shape; not to be written to


class _Ordered(Protocol):
    """A scheduler, of whose steps each takes so many iterations of a pipeline's loop."""

    order: int


class PipelineFactory:
    """Makes a pipeline for each request; none of them changes what they share."""

    def __init__(self, loaded: LoadedPipeline, settings: ImageSettings) -> None:
        self._loaded = loaded
        self._planner = Planner(loaded, settings)

    def plan(self, request: ImageRequest, seed: int) -> ImagePlan:
        """Return a request with every default filled in; blocks.

        Args:
            request: What is asked for.
            seed: Of its first image.

        Raises:
            InvalidRequestError: The model cannot do what is asked for.
        """
        return self._planner.plan(request, seed)

    def rows_per_step(self, plan: ImagePlan) -> float:
        """Return how many rows a call of the denoiser has in a plan, as costs are counted.

        Where guidance or the scheduler calls twice in a step, the second call is left out.
        """
        family, pipeline = self._loaded.family, self._loaded.pipeline
        side: int = pipeline.vae_scale_factor * family.patch  # pixels of a patch
        num_patches = plan.width * plan.height // side**2
        return plan.max_rows * mean_rows(pipeline.components[family.denoiser], num_patches)

    def build(self, plan: ImagePlan, components: Mapping[str, object]) -> "PipelineRun":
        """Return a plan's pipeline, ready to run once.

        Args:
            plan: As ``plan`` has returned it.
            components: What the pipeline sees in place of the model's own, by name.
        """
        family, pipeline = self._loaded.family, self._loaded.pipeline
        own: SchedulerMixin = pipeline.components["scheduler"]
        scheduler = make_scheduler(own, plan.scheduler)
        class_name = family.text_to_image if plan.init_image is None else family.image_to_image
        built = build_pipeline(
            class_name,
            {**pipeline.components, **components, "scheduler": scheduler},
            dict(pipeline.config),
        )
        built.set_progress_bar_config(disable=True)
        return PipelineRun(
            pipeline=built,
            arguments=_arguments(family, built, plan),
            num_steps=plan.num_run_steps,
            order=cast(_Ordered, scheduler).order,
        )


@dataclass(slots=True, kw_only=True, eq=False)
class PipelineRun:
    """One run of a stock pipeline, for one thread.

    A step of its scheduler may take several iterations of the pipeline's loop: two of Heun's, and
    one of PNDM's comes before the first.
    """

    pipeline: DiffusionPipeline
    arguments: Mapping[str, object]
    num_steps: int  # of the scheduler, to be run
    order: int  # iterations of a step
    _num_done: int = field(default=0, init=False)  # steps
    _latents: Tensor | None = field(default=None, init=False)

    @property
    def step(self) -> int:
        """The step of the scheduler that runs now, counted from 0."""
        return min(self._num_done, self.num_steps - 1)  # the last one, while latents are decoded

    def __call__(self, on_step: Callable[[StepDone], None]) -> PipelineResult:
        """Run the pipeline.

        Args:
            on_step: Is told of each step of the scheduler when it is done; what it raises ends
                the run.
        """

        def end_iteration(
            pipeline: DiffusionPipeline, iteration: int, _: object, kept: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            self._latents = kept[LATENTS]
            if self._ends_step(pipeline.num_timesteps, iteration):
                on_step(
                    StepDone(step=self._num_done, num_steps=self.num_steps, latents=self._latents)
                )
            return kept

        run = cast(Callable[..., Mapping[str, object]], self.pipeline)
        output = run(
            **self.arguments,
            output_type="pil",
            callback_on_step_end=end_iteration,
            callback_on_step_end_tensor_inputs=[LATENTS],
        )
        images = cast(Sequence[Image], output["images"])
        flags = cast("Sequence[bool] | None", output.get("nsfw_content_detected"))
        assert self._latents is not None, "a pipeline has a step"
        return PipelineResult(
            images=tuple(images),
            latents=self._latents,
            are_flagged=tuple(map(bool, flags or [False] * len(images))),
        )

    def _ends_step(self, num_iterations: int, iteration: int) -> bool:
        """Count an iteration that has ended, and return whether a step of the scheduler has."""
        num_before = max(num_iterations - self.num_steps * self.order, 0)
        is_last = iteration == num_iterations - 1  # Heun's last step has but one
        num_done = max(iteration + 1 - num_before, 0) // self.order
        num_ended = self.num_steps if is_last else num_done
        is_end = num_ended > self._num_done
        self._num_done = num_ended
        return is_end


def _arguments(
    family: Family, pipeline: DiffusionPipeline, plan: ImagePlan
) -> Mapping[str, object]:
    """Return what the pipeline is called with."""
    num_images = len(plan.seeds)
    arguments: dict[str, object] = {
        "prompt": plan.prompt,
        "num_inference_steps": plan.num_steps,
        "num_images_per_prompt": num_images,
        "generator": [_generator(seed) for seed in plan.seeds],
    }
    if plan.init_image is not None:
        # One for each image, so that each draws its own noise; FLUX.2 would look at all of them.
        image = plan.init_image
        arguments["image"] = [image] * num_images if family.has_strength else image
    guidance_scale = plan.guidance_scale
    if guidance_scale is None and family.guidance is Guidance.CLASSIFIER_FREE:
        guidance_scale = 1.0  # off; a model distilled without it would warn of its default
    optional = {
        "strength": plan.strength,
        "negative_prompt": plan.negative_prompt,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": plan.true_cfg_scale,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if "width" in inspect.signature(type(pipeline).__call__).parameters:
        return {**arguments, "width": plan.width, "height": plan.height}
    return arguments  # the size is that of the init image


def _generator(seed: int) -> torch.Generator:
    """Return an image's own source of noise: on the CPU, where it is the same on every machine."""
    return torch.Generator("cpu").manual_seed(seed if seed < 2**63 else seed - 2**64)

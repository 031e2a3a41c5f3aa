"""Reference: images made alone, by the stock pipeline on weights that the trainers merged."""

import fnmatch
import hashlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import cast

import torch
from diffusers import PNDMScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor

from lokr_serve.image.schedulers import make_scheduler
from lokr_serve.types import AdapterWeight, ImageRequest
from tests.oracle.images.peers import Changes
from tests.oracle.images.trained import Holder, ImageFamily, component

# What the denoisers of the families call the latents.
_INPUTS = ("sample", "hidden_states", "x")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageAlone:
    """What a stock pipeline makes of a request for one image."""

    latents: Tensor  # [1, ...] after the last step, in the pipeline's own shape
    first_rows: frozenset[str]  # digests of the rows of the denoiser's first call


@dataclass(slots=True)
class _Watched:
    """What is seen of a pipeline's run."""

    first_rows: frozenset[str] = frozenset()
    latents: list[Tensor] = field(default_factory=list)


class Reference:
    """Stock pipelines of one family, whose weights are set anew for each request.

    Args:
        family: Of the pipelines.
        dtype: Of their weights.
        changes: What the trainer of each adapter changes, by adapter id.
    """

    def __init__(
        self, family: ImageFamily, dtype: torch.dtype, changes: Mapping[str, Changes]
    ) -> None:
        self._family = family
        self._changes = changes
        self._base = Holder(family, torch.float64).weights()
        self._holder = Holder(family, dtype)
        self._own_scheduler = _reloaded(self._holder.pipeline.components["scheduler"])
        self._watched = _Watched()
        denoiser = component(self._holder.pipeline, family.denoiser)
        denoiser.register_forward_pre_hook(self._watch, with_kwargs=True)

    @torch.no_grad()
    def make(self, request: ImageRequest, index: int = 0) -> ImageAlone:
        """Return one image of a request, made alone."""
        self._watched = _Watched()
        self._set_weights(request.adapters, self._family.components)
        self._schedule(request, 0)
        pipeline = self._pipeline(request)

        def at_step_end(
            pipe: DiffusionPipeline, iteration: int, _: object, seen: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            self._watched.latents.append(seen["latents"].clone())
            self._schedule(request, _step_of(pipe.scheduler, iteration + 1))
            return {}

        assert request.params.seed is not None
        seed = request.params.seed + index
        known = inspect.signature(type(pipeline).__call__).parameters
        run = cast(Callable[..., object], pipeline)
        run(
            **{name: value for name, value in _arguments(request).items() if name in known},
            generator=[torch.Generator("cpu").manual_seed(seed)],
            output_type="latent",
            callback_on_step_end=at_step_end,
        )
        return ImageAlone(latents=self._watched.latents[-1], first_rows=self._watched.first_rows)

    def _pipeline(self, request: ImageRequest) -> DiffusionPipeline:
        like, params = self._holder.pipeline, request.params
        own = self._own_scheduler
        scheduler = make_scheduler(own, params.scheduler or type(own).__name__)
        made = type(like) if params.init_image is None else self._family.image_to_image
        return build(made, like, scheduler)

    def _set_weights(self, parts: Sequence[AdapterWeight], components: Sequence[str]) -> None:
        """Set ``W + Σ wᵢ (Wᵢ' − W)`` in some components; the sum is taken in float64."""
        for name, parameter in self._holder.named_parameters():
            if name.partition(".")[0] in components:
                weight = self._base[name].clone()
                for part in parts:
                    change = self._changes[part.adapter_id].get(name)
                    if change is not None:
                        weight += weight_at(part, name.removesuffix(".weight")) * change
                parameter.copy_(weight)

    def _schedule(self, request: ImageRequest, step: int) -> None:
        """Set the denoiser's weights for a step of the scheduler."""
        factors = {s.adapter_id: s.factor(step) for s in request.schedules}
        if factors:
            parts = [scaled(part, factors.get(part.adapter_id, 1.0)) for part in request.adapters]
            self._set_weights(parts, [self._family.denoiser])

    def _watch(self, _: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not self._watched.first_rows:
            self._watched.first_rows = frozenset(row_digests(args, kwargs))


def build(
    made: type[DiffusionPipeline], like: DiffusionPipeline, scheduler: SchedulerMixin
) -> DiffusionPipeline:
    """Return a pipeline over another's components, but for the scheduler, which it may set up.

    Not by ``from_pipe``, which casts them to float32.
    """
    known = inspect.signature(made.__init__).parameters
    settings = {**like.config, **like.components, "scheduler": scheduler}
    pipeline = made(**{name: settings[name] for name in known if name in settings})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _reloaded(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return a scheduler as it comes from a model's folder, with all of its settings told.

    One that was made in place hands on only the settings that it was given, where another class
    is made of its configuration.
    """
    with TemporaryDirectory() as folder:
        scheduler.save_pretrained(folder)
        return cast(SchedulerMixin, type(scheduler).from_pretrained(folder))


def weight_at(part: AdapterWeight, path: str) -> float:
    """Return the weight of a module, which a pattern may set."""
    for pattern, weight in part.module_weights:
        if fnmatch.fnmatchcase(path, pattern):
            return weight
    return part.weight


def scaled(part: AdapterWeight, factor: float) -> AdapterWeight:
    """Return a part with all its weights multiplied."""
    return AdapterWeight(
        adapter_id=part.adapter_id,
        weight=part.weight * factor,
        module_weights=tuple((pattern, w * factor) for pattern, w in part.module_weights),
    )


def row_digests(args: Sequence[object], kwargs: Mapping[str, object]) -> list[str]:
    """Return a digest of the latents in each row of a denoiser's call."""
    given = next((kwargs[name] for name in _INPUTS if name in kwargs), args[0] if args else None)
    rows = list(given) if isinstance(given, (Tensor, list)) else []
    assert rows, "a denoiser was called without latents"
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in rows]


def _step_of(scheduler: object, iteration: int) -> int:
    """Return the scheduler's step that an iteration of the pipeline's loop belongs to."""
    if isinstance(scheduler, PNDMScheduler):  # whose first step takes two
        return max(iteration - 1, 0)
    order = scheduler.order  # type: ignore[attr-defined]
    assert isinstance(order, int)
    return iteration // order


def _arguments(request: ImageRequest) -> dict[str, object]:
    """Return what a stock pipeline is called with; what is unset takes its own default."""
    params = request.params
    given: dict[str, object] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": params.num_steps,
        "guidance_scale": params.guidance_scale,
        "true_cfg_scale": params.true_cfg_scale,
        "width": params.width,
        "height": params.height,
    }
    if params.init_image is not None:
        given["image"] = Image.open(io.BytesIO(params.init_image.data))
        given["strength"] = params.init_image.strength
    return {name: value for name, value in given.items() if value is not None}

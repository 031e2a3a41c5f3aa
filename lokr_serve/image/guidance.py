"""How a request's images are guided by its prompts; what a model would ignore is refused."""

from dataclasses import dataclass

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.families import Family, Guidance
from lokr_serve.types import ImageRequest

_SCALE = "params.guidance_scale"
_TRUE_SCALE = "params.true_cfg_scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceScales:
    """The scales that a pipeline is called with; None where it ignores or lacks them."""

    guidance: float | None
    true_cfg: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenGuidance:
    """How a request is guided."""

    scales: GuidanceScales
    rows_per_image: int  # of one call of the denoiser


def choose_guidance(
    request: ImageRequest, family: Family, pipeline: DiffusionPipeline, defaults: GuidanceScales
) -> ChosenGuidance:
    """Return how a request is guided.

    Args:
        request: What is asked.
        family: Of the pipeline.
        pipeline: As it was loaded.
        defaults: Of the stock pipeline's call.

    Raises:
        InvalidRequestError: The model would ignore a scale or the negative prompt, or lacks one.
    """
    if request.negative_prompt is not None and not family.has_negative_prompt:
        raise InvalidRequestError("negative_prompt", "this model takes none; leave it out")
    guidance = _scale(request, family, pipeline, defaults.guidance)
    true_cfg = _true_cfg_scale(request, family, defaults.true_cfg)
    is_doubled = _is_classifier_free(family, pipeline, guidance)
    _check_negative_prompt(request, family, is_doubled)
    return ChosenGuidance(
        scales=GuidanceScales(guidance=guidance, true_cfg=true_cfg),
        rows_per_image=2 if is_doubled and family.is_guided_in_one_call else 1,
    )


def _scale(
    request: ImageRequest, family: Family, pipeline: DiffusionPipeline, default: float | None
) -> float | None:
    asked = request.params.guidance_scale
    if not _heeds_guidance(family, pipeline):
        if asked is not None:
            raise InvalidRequestError(
                _SCALE, "this model was distilled without it and would ignore it; leave it out"
            )
        return None
    scale = default if asked is None else asked
    if scale is None:
        raise InvalidRequestError(_SCALE, "this model has no default for it; set it")
    return scale


def _heeds_guidance(family: Family, pipeline: DiffusionPipeline) -> bool:
    if family.guidance is Guidance.EMBEDDED:
        return bool(pipeline.components[family.denoiser].config.guidance_embeds)
    return not pipeline.config.get("is_distilled", False)


def _is_classifier_free(family: Family, pipeline: DiffusionPipeline, scale: float | None) -> bool:
    if family.guidance is Guidance.EMBEDDED or scale is None or scale <= family.guided_above:
        return False
    # A UNet that was distilled to know its guidance is told it instead.
    return pipeline.components[family.denoiser].config.get("time_cond_proj_dim") is None


def _true_cfg_scale(request: ImageRequest, family: Family, default: float | None) -> float | None:
    """Return the scale of true guidance, which needs both a negative prompt and a scale above 1."""
    asked = request.params.true_cfg_scale
    if not family.has_true_cfg:
        if asked is not None:
            raise InvalidRequestError(_TRUE_SCALE, "this model has none; use guidance_scale")
        return None
    if request.negative_prompt is None:
        if asked is not None and asked > 1:
            raise InvalidRequestError(
                _TRUE_SCALE, "guides away from the negative_prompt; give one, which may be empty"
            )
        return 1.0
    scale = default if asked is None else asked
    if scale is None or scale <= 1:
        raise InvalidRequestError(
            "negative_prompt",
            f"is ignored at true_cfg_scale {scale}; set params.true_cfg_scale above 1",
        )
    return scale


def _check_negative_prompt(request: ImageRequest, family: Family, is_doubled: bool) -> None:
    is_ignored = not family.has_true_cfg and not is_doubled
    if request.negative_prompt is not None and is_ignored:
        raise InvalidRequestError(
            "negative_prompt",
            "is ignored without classifier-free guidance; set params.guidance_scale above "
            f"{family.guided_above:g}, or leave the negative prompt out",
        )

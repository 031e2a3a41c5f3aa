"""What an image says of how it was made: enough to make it again, and nothing of the server."""

import json
from collections.abc import Mapping

from lokr_core import AdapterMix
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.plan import ImagePlan
from lokr_serve.types import ImageRequest, WeightSchedule

SOFTWARE_KEY = "Software"  # both are keywords that the PNG standard registers
COMMENT_KEY = "Comment"
SOFTWARE = "lokr-serve"


def image_metadata(generation: ImageGeneration, index: int, *, model: str) -> Mapping[str, str]:
    """Return what an image of a request carries, which is nothing unless that was asked for."""
    request, plan = generation.request, generation.plan
    if not request.output.metadata:
        return {}
    return describe(request, plan, mix=generation.mix, seed=plan.seeds[index], model=model)


def describe(
    request: ImageRequest, plan: ImagePlan, *, mix: AdapterMix, seed: int, model: str
) -> Mapping[str, str]:
    """Return what an image carries, by key; the comment is JSON.

    Args:
        request: What was asked for.
        plan: How it was run.
        mix: The adapters that it was made with, unscheduled.
        seed: The seed of this image.
        model: The name of the base model, without the path to it.
    """
    facts = {
        "model": model,
        "prompt": plan.prompt,
        "negative_prompt": plan.negative_prompt,
        "adapters": _adapters(mix),
        "schedules": [_schedule(schedule) for schedule in request.schedules],
        "seed": seed,
        "num_steps": plan.num_steps,
        "guidance_scale": plan.guidance_scale,
        "true_cfg_scale": plan.true_cfg_scale,
        "scheduler": plan.scheduler,
        "width": plan.width,
        "height": plan.height,
        "init_image": _init_image(plan),
    }
    return {SOFTWARE_KEY: SOFTWARE, COMMENT_KEY: json.dumps(facts, ensure_ascii=False)}


def _adapters(mix: AdapterMix) -> list[dict[str, object]]:
    return [
        {
            "adapter_id": part.ref.adapter_id,
            "version": part.ref.version,
            "weight": part.weight,
            "module_weights": dict(part.module_weights),
        }
        for part in mix.parts
    ]


def _schedule(schedule: WeightSchedule) -> dict[str, object]:
    points = [{"step": point.step, "factor": point.factor} for point in schedule.points]
    return {"adapter_id": schedule.adapter_id, "points": points}


def _init_image(plan: ImagePlan) -> dict[str, object] | None:
    if plan.init_digest is None:
        return None
    return {"digest": plan.init_digest, "strength": plan.strength}

"""What an image says of itself."""

import json
from dataclasses import replace

from lokr_core import AdapterMix, AdapterRef
from lokr_serve.image.metadata import describe
from lokr_serve.image.plan import ImagePlan
from lokr_serve.types import (
    AdapterWeight,
    ImageRequest,
    ScheduledFactor,
    WeightSchedule,
)

POET = AdapterRef(adapter_id="poet", version="0123456789abcdef")
PLAN = ImagePlan(
    prompt="кот",
    negative_prompt="dog",
    width=64,
    height=32,
    num_steps=10,
    num_run_steps=6,
    guidance_scale=7.5,
    true_cfg_scale=None,
    seeds=(7, 8),
    scheduler="DDIMScheduler",
    init_image=None,  # the file that it came in is told, by its digest
    init_digest="d0" * 32,
    strength=0.6,
    max_rows=4,
)


def test_an_image_says_all_that_is_needed_to_make_it_again() -> None:
    """Defaults that were filled in are told as well: they may change."""
    request = ImageRequest(
        prompt="кот",
        adapters=(AdapterWeight(adapter_id="poet", weight=0.7),),
        schedules=(
            WeightSchedule(adapter_id="poet", points=(ScheduledFactor(step=3, factor=0.5),)),
        ),
    )
    mix = AdapterMix.of({POET: 0.7}, module_weights={POET: {"unet.*": 0.2}})
    metadata = describe(request, PLAN, mix=mix, seed=8, model="base")

    assert metadata["Software"] == "lokr-serve"
    assert json.loads(metadata["Comment"]) == {
        "model": "base",
        "prompt": "кот",
        "negative_prompt": "dog",
        "adapters": [
            {
                "adapter_id": "poet",
                "version": "0123456789abcdef",
                "weight": 0.7,
                "module_weights": {"unet.*": 0.2},
            }
        ],
        "schedules": [{"adapter_id": "poet", "points": [{"step": 3, "factor": 0.5}]}],
        "seed": 8,
        "num_steps": 10,
        "guidance_scale": 7.5,
        "true_cfg_scale": None,
        "scheduler": "DDIMScheduler",
        "width": 64,
        "height": 32,
        "init_image": {"digest": "d0" * 32, "strength": 0.6},
    }
    assert "кот" in metadata["Comment"]  # readable as it stands


def test_an_image_of_the_base_model_names_no_adapter() -> None:
    """What is not there is told as well."""
    request, plan = ImageRequest(prompt="x"), replace(PLAN, init_digest=None)
    metadata = describe(request, plan, mix=AdapterMix(), seed=7, model="base")
    facts = json.loads(metadata["Comment"])

    assert (facts["adapters"], facts["schedules"], facts["init_image"]) == ([], [], None)

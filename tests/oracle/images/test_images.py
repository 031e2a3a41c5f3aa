"""A slice of the oracle: images of every family in mixed batches, and the judge of them."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from lokr_serve.types import ImageRequest
from tests.oracle.images.__main__ import main
from tests.oracle.images.adapters import AdapterFiles, write_adapters
from tests.oracle.images.report import judge, report_images, serve
from tests.oracle.images.stage import ImageStage, ServedImages
from tests.oracle.images.traffic import FORMS
from tests.oracle.images.trained import FAMILIES, ImageFamily

# The long run takes all kinds of files to every family.
KINDS: Mapping[str, tuple[str, str]] = {
    "stable-diffusion": ("lycoris-lokr", "peft-dora"),
    "stable-diffusion-xl": ("peft-lokr", "diffusers-lora"),
    "stable-diffusion-3": ("lycoris-lokr-dora", "diffusers-lora"),
    "flux": ("lycoris-lokr", "peft-lokr-both"),
    "flux2": ("peft-lokr", "diffusers-lokr"),
    "flux2-klein": ("lycoris-lokr-full", "diffusers-lora"),
    "qwen-image": ("peft-loha", "diffusers-lora"),
    "z-image": ("lycoris-loha", "peft-lokr"),
}
SEED = 3
NUM_REQUESTS = 3  # of each family


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_images_of_a_mixed_batch_are_those_made_alone(family: ImageFamily) -> None:
    """By the stock pipeline, from text and from an image, on weights that the trainer merged."""
    first = NUM_REQUESTS * list(FAMILIES).index(family.name)  # each form with several families
    numbers = range(first, first + NUM_REQUESTS)

    report = report_images(family, KINDS[family.name], "float32", numbers=numbers, seed=SEED)

    assert report.verdict.differences == []
    assert report.conditions.failed_steps == 0
    assert len(report.forms) == NUM_REQUESTS
    assert report.verdict.num_images >= NUM_REQUESTS


FAMILY = FAMILIES["stable-diffusion-3"]
FILES_KINDS = ("lycoris-lokr", "diffusers-lora")
Served = tuple[AdapterFiles, Sequence[ServedImages], ImageStage]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Images of one request of each form, served in float64."""
    folder = tmp_path_factory.mktemp("images")
    files = write_adapters(FAMILY, folder / "adapters", FILES_KINDS, SEED)
    images, stage = asyncio.run(
        serve(files, folder / "model", "float64", numbers=range(len(FORMS)), seed=SEED)
    )
    return files, images, stage


def with_wrong_weights(served: ServedImages) -> ServedImages:
    """Say that images are of a slightly stronger mix."""

    def spoil(request: ImageRequest) -> ImageRequest:
        parts = [replace(part, weight=1.001 * part.weight) for part in request.adapters]
        return replace(request, adapters=tuple(parts))

    return _with_request(served, spoil)


def with_wrong_seed(served: ServedImages) -> ServedImages:
    """Say that images began with other noise."""

    def spoil(request: ImageRequest) -> ImageRequest:
        assert request.params.seed is not None
        return replace(request, params=replace(request.params, seed=request.params.seed + 7))

    return _with_request(served, spoil)


def with_late_schedule(served: ServedImages) -> ServedImages:
    """Say that every change of the weights came a step later."""

    def spoil(request: ImageRequest) -> ImageRequest:
        schedules = [
            replace(s, points=tuple(replace(point, step=point.step + 1) for point in s.points))
            for s in request.schedules
        ]
        return replace(request, schedules=tuple(schedules))

    return _with_request(served, spoil)


def with_rounded_latents(served: ServedImages) -> ServedImages:
    """Say that images are what float32 has of them."""
    rounded = [latents.to(torch.float32).to(latents.dtype) for latents in served.latents]
    return replace(served, latents=rounded)


def _with_request(
    served: ServedImages, spoil: Callable[[ImageRequest], ImageRequest]
) -> ServedImages:
    planned = served.planned
    return replace(served, planned=replace(planned, request=spoil(planned.request)))


@pytest.mark.parametrize(
    ("spoil", "form"),
    [
        (with_wrong_weights, "module weights"),
        (with_wrong_seed, "base"),
        (with_late_schedule, "schedule"),
        (with_rounded_latents, "two"),
    ],
)
def test_a_mistake_is_noticed(
    served: Served, spoil: Callable[[ServedImages], ServedImages], form: str
) -> None:
    """An oracle that cannot say no proves nothing."""
    files, images, stage = served
    (chosen,) = (each for each in images if each.planned.form == form)

    right = judge(files, "float64", [chosen], stage.rows)
    wrong = judge(files, "float64", [spoil(chosen)], stage.rows)

    assert right.differences == []
    assert wrong.differences != []


def test_the_command_prints_a_line_for_each_family(capsys: pytest.CaptureFixture[str]) -> None:
    """The long run is read by people and by programs."""
    families = ["qwen-image", "z-image"]
    status = main(["--requests=2", "--kind=peft-lokr", *(f"--family={f}" for f in families)])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [line["family"] for line in lines] == families
    assert all(line["passed"] for line in lines)

"""Images, from a tiny real pipeline over a real channel."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest
import safetensors.torch
from PIL import ExifTags, Image

from lokr_serve.client import Client
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    GeneratedImage,
    ImageFinished,
    ImageFormat,
    ImageOutput,
    ImageParams,
    ImagePreview,
    ImageProgress,
    ImageRequest,
    ImageStarted,
    InitImage,
    ScheduledFactor,
    WeightSchedule,
)
from tests.serve.adapters.manifest.declaring import entry, write_manifest
from tests.serve.running import Connection, connected, running_server, tiny_settings

T = TypeVar("T")

PARAMS = ImageParams(width=32, height=16, num_steps=4, seed=7)
INK = AdapterWeight(adapter_id="ink", weight=0.5)
OIL = AdapterWeight(adapter_id="oil")
RAW = ImageOutput(format=ImageFormat.RAW)


def request(
    *adapters: AdapterWeight, params: ImageParams = PARAMS, output: ImageOutput = RAW
) -> ImageRequest:
    """Return a short request, whose way of application does not hang on what was asked before."""
    return ImageRequest(
        prompt="a cat",
        adapters=adapters,
        params=params,
        output=output,
        apply_mode=ApplyMode.UNMERGED,
    )


def of_kind(kind: type[T], events: Iterable[object]) -> list[T]:
    """Return the events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def image_of(client: Client, wanted: ImageRequest) -> GeneratedImage:
    """Return the one image of a request."""
    (image,) = client.generate_image_once(wanted).images
    return image


def init_image(size: tuple[int, int] = (32, 16)) -> bytes:
    """Return a PNG file to start from."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(file, "PNG")
    return file.getvalue()


def test_a_request_streams_its_steps_and_then_its_image(shared_image_server: Connection) -> None:
    """Someone watches a bar, and then the picture is there, whole, before its end is told."""
    started, *progress, image, finished = shared_image_server.client.generate_image(
        request(INK, OIL)
    )

    assert isinstance(started, ImageStarted)
    assert (started.mix_name, started.seed) == ("ink*0.5+oil", 7)
    assert [adapter.adapter_id for adapter in started.adapters] == ["ink", "oil"]
    assert (started.width, started.height, started.num_steps) == (32, 16, 4)
    assert started.scheduler == "PNDMScheduler"
    assert started.apply_mode is ApplyMode.UNMERGED
    steps = of_kind(ImageProgress, progress)
    assert len(steps) == len(progress)
    assert steps[-1] == ImageProgress(step=4, num_steps=4)
    assert isinstance(image, GeneratedImage)
    assert (image.width, image.height, image.seed, len(image.data)) == (32, 16, 7, 32 * 16 * 3)
    assert isinstance(finished, ImageFinished)
    assert (finished.mix_name, finished.apply_mode) == (started.mix_name, started.apply_mode)
    assert finished.usage.num_steps == 4
    assert finished.usage.num_denoiser_rows >= 2 * 4  # guidance doubles the rows
    assert 0 <= finished.timing.queue_seconds <= finished.timing.total_seconds


def test_adapters_change_the_image_and_the_base_comes_back(
    shared_image_server: Connection,
) -> None:
    """The mix of one request is no other's."""
    client = shared_image_server.client
    base, ink, oil = (image_of(client, request(*mix)).data for mix in ((), (INK,), (OIL,)))

    assert len({base, ink, oil}) == 3
    assert image_of(client, request()).data == base


def test_each_image_of_a_request_is_the_one_of_its_seed(shared_image_server: Connection) -> None:
    """A favourite among several can be made again alone."""
    params = ImageParams(width=32, height=16, num_steps=4, seed=2**64 - 1, num_images=2)
    reply = shared_image_server.client.generate_image_once(request(params=params))

    assert [image.seed for image in reply.images] == [2**64 - 1, 0]
    assert [end.index for end in reply.finished] == [0, 1]
    alone = ImageParams(width=32, height=16, num_steps=4, seed=0)
    second = image_of(shared_image_server.client, request(params=alone))
    difference = [abs(a - b) for a, b in zip(second.data, reply.images[1].data, strict=True)]
    assert max(difference) <= 1


def test_a_seed_is_drawn_and_told(shared_image_server: Connection) -> None:
    """So that the picture can be made again."""
    params = ImageParams(width=16, height=16, num_steps=1)
    seeds = {image_of(shared_image_server.client, request(params=params)).seed for _ in range(2)}

    assert len(seeds) == 2


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.JPEG])
def test_images_come_in_the_format_that_is_asked_for(
    shared_image_server: Connection, image_format: ImageFormat
) -> None:
    """Without loss where the format has none."""
    raw = image_of(shared_image_server.client, request())
    image = image_of(shared_image_server.client, request(output=ImageOutput(format=image_format)))
    opened = Image.open(io.BytesIO(image.data))

    assert (image.format, opened.format, opened.size) == (image_format, image_format.name, (32, 16))
    assert image_format is ImageFormat.JPEG or opened.tobytes() == raw.data


def test_an_image_starts_from_another(shared_image_server: Connection) -> None:
    """Of the steps, the strength leaves a share."""
    params = ImageParams(num_steps=8, seed=7, init_image=InitImage(data=init_image(), strength=0.5))
    reply = shared_image_server.client.generate_image_once(request(INK, params=params))

    assert (reply.started.width, reply.started.height, reply.started.num_steps) == (32, 16, 4)
    assert reply.finished[0].usage.num_steps == 4


def test_previews_come_when_asked_for(shared_image_server: Connection) -> None:
    """They show whether it is worth waiting."""
    events = shared_image_server.client.generate_image(
        request(output=ImageOutput(preview_interval=1))
    )
    previews = of_kind(ImagePreview, events)

    assert previews
    assert all(1 <= preview.step <= 4 for preview in previews)
    opened = Image.open(io.BytesIO(previews[-1].data))
    assert opened.format == "JPEG"
    assert opened.size == (previews[-1].width, previews[-1].height)


def test_latents_come_when_asked_for(shared_image_server: Connection) -> None:
    """Others decode them in their own way, or go on from them."""
    image = image_of(shared_image_server.client, request(output=ImageOutput(latents=True)))

    assert image.latents is not None
    (latents,) = safetensors.torch.load(image.latents).values()
    assert latents.shape[0] == 1
    assert latents.isfinite().all()


@pytest.mark.parametrize("image_format", [ImageFormat.PNG, ImageFormat.WEBP, ImageFormat.JPEG])
def test_an_image_says_how_it_was_made(
    shared_image_server: Connection, image_format: ImageFormat
) -> None:
    """It tells the mix with its versions, and nothing of where the server keeps things."""
    output = ImageOutput(format=image_format, metadata=True)
    reply = shared_image_server.client.generate_image_once(request(INK, output=output))
    opened = Image.open(io.BytesIO(reply.images[0].data))
    if image_format is ImageFormat.PNG:
        comment = opened.info["Comment"]
    else:
        details = opened.getexif().get_ifd(ExifTags.IFD.Exif)
        comment = details[ExifTags.Base.UserComment][8:].decode()
    facts = json.loads(comment)

    assert (facts["model"], facts["prompt"], facts["seed"]) == ("tiny-sd", "a cat", 7)
    (adapter,) = facts["adapters"]
    assert (adapter["adapter_id"], adapter["weight"]) == ("ink", 0.5)
    assert adapter["version"] == reply.started.adapters[0].version
    assert "/" not in comment


def test_weights_change_over_the_steps_and_by_component(shared_image_server: Connection) -> None:
    """People use all three: mixes, weights of blocks, schedules."""
    client = shared_image_server.client
    off = WeightSchedule(adapter_id="oil", points=(ScheduledFactor(step=0, factor=0),))
    late = WeightSchedule(adapter_id="oil", points=(ScheduledFactor(step=2, factor=0),))

    def scheduled(schedule: WeightSchedule) -> ImageRequest:
        return ImageRequest(
            prompt="a cat", adapters=(OIL,), schedules=(schedule,), params=PARAMS, output=RAW
        )

    def blocks(pattern: str) -> AdapterWeight:
        return AdapterWeight(adapter_id="oil", weight=0, module_weights=((pattern, 1.0),))

    base, full = image_of(client, request()).data, image_of(client, request(OIL)).data
    assert image_of(client, scheduled(off)).data == base
    assert image_of(client, scheduled(late)).data not in (base, full)
    assert client.generate_image_once(scheduled(late)).started.apply_mode is ApplyMode.UNMERGED
    assert image_of(client, request(blocks("unet.*"))).data == full
    assert image_of(client, request(blocks("unet.down_blocks.*"))).data not in (base, full)


def test_a_schedule_may_name_its_adapter_by_an_alias(
    pipeline_folder: Path, image_adapter_folder: Path, tmp_path: Path
) -> None:
    """The picture, and what it says of how it was made, are the same by either name."""
    manifest = tmp_path / "manifest.yaml"
    write_manifest(manifest, entry("oil", source="oil.safetensors", aliases=["paint"]))
    settings = tiny_settings(pipeline_folder, image_adapter_folder, adapters={"manifest": manifest})

    def image(name: str, factor: float) -> bytes:
        points = (ScheduledFactor(step=2, factor=factor),)
        wanted = ImageRequest(
            prompt="a cat",
            adapters=(AdapterWeight(adapter_id=name),),
            schedules=(WeightSchedule(adapter_id=name, points=points),),
            params=PARAMS,
            output=ImageOutput(metadata=True),
        )
        return image_of(connection.client, wanted).data

    with running_server(settings) as server, connected(server.ready.result()) as connection:
        by_id, by_alias, unscheduled = image("oil", 0), image("paint", 0), image("paint", 1)

    assert by_alias == by_id
    assert Image.open(io.BytesIO(by_id)).tobytes() != Image.open(io.BytesIO(unscheduled)).tobytes()


def test_a_mix_can_be_merged(shared_image_server: Connection) -> None:
    """It makes the same image, but for rounding, and the reply says how."""
    merged = ImageRequest(
        prompt="a cat", adapters=(INK,), params=PARAMS, output=RAW, apply_mode=ApplyMode.MERGED
    )
    reply = shared_image_server.client.generate_image_once(merged)
    unmerged = image_of(shared_image_server.client, request(INK))
    difference = [abs(a - b) for a, b in zip(reply.images[0].data, unmerged.data, strict=True)]

    assert reply.finished[0].apply_mode is ApplyMode.MERGED
    assert max(difference) <= 1

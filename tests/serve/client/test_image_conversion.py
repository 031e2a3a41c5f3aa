"""Requests for images and their replies: what one side writes, the other reads back as it was."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.client import DataLossError
from lokr_serve.client.image_replies import ImageReader
from lokr_serve.client.image_requests import image_message
from lokr_serve.client.requests import generation_metadata
from lokr_serve.rpc.conversion.image_replies import (
    MAX_CHUNK_BYTES,
    chunk_messages,
    event_message,
    image_files,
)
from lokr_serve.rpc.conversion.image_requests import image_request
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    GeneratedImage,
    ImageEvent,
    ImageFinished,
    ImageFormat,
    ImageOutput,
    ImageParams,
    ImagePreview,
    ImageProgress,
    ImageRequest,
    ImageStarted,
    ImageTiming,
    ImageUsage,
    InitImage,
    ResolvedAdapter,
    ScheduledFactor,
    WeightSchedule,
)
from lokr_serve.v1.images_pb2 import GenerateImageResponse

COUNTS = st.integers(1, 2**31 - 1)
SEEDS = st.integers(0, 2**64 - 1)
REALS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 1e9)
ADAPTERS = (
    AdapterWeight(adapter_id="poet", weight=0.5, module_weights=(("unet.*", 0.25),)),
    AdapterWeight(adapter_id="a/b", weight=0.0),
)

INIT_IMAGES = st.builds(
    InitImage,
    data=st.binary(max_size=5),
    strength=st.none() | st.floats(0, 1, exclude_min=True),
)
PARAMS = st.builds(
    ImageParams,
    width=st.none() | COUNTS,
    height=st.none() | COUNTS,
    num_steps=st.none() | COUNTS,
    guidance_scale=st.none() | st.floats(0, 1000),
    true_cfg_scale=st.none() | st.floats(0, 1000),
    seed=st.none() | SEEDS,
    scheduler=st.sampled_from(["", "DDIMScheduler"]),
    num_images=st.integers(1, 64),
    init_image=st.none() | INIT_IMAGES,
)
OUTPUTS = st.builds(
    ImageOutput,
    format=st.sampled_from([ImageFormat.WEBP, ImageFormat.JPEG]),
    quality=st.none() | st.integers(1, 100),
    latents=st.booleans(),
    metadata=st.booleans(),
    preview_interval=st.integers(0, 9),
) | st.builds(ImageOutput, format=st.sampled_from([ImageFormat.PNG, ImageFormat.RAW]))
POINTS = st.dictionaries(st.integers(0, 2**32 - 1), REALS, min_size=1, max_size=3).map(
    lambda factors: tuple(
        ScheduledFactor(step=step, factor=factor) for step, factor in sorted(factors.items())
    )
)
REQUESTS = st.builds(
    ImageRequest,
    prompt=TEXTS,
    negative_prompt=st.none() | TEXTS,
    adapters=st.just(ADAPTERS),
    schedules=st.lists(
        st.builds(WeightSchedule, adapter_id=st.just("poet"), points=POINTS), max_size=1
    ).map(tuple),
    params=PARAMS,
    output=OUTPUTS,
    request_id=st.sampled_from(["a", "x-1"]),
    apply_mode=st.sampled_from([ApplyMode.AUTO, ApplyMode.UNMERGED]),
)
MODES = st.sampled_from([ApplyMode.UNMERGED, ApplyMode.MERGED])
STARTED = st.builds(
    ImageStarted,
    request_id=TEXTS,
    adapters=st.lists(
        st.builds(ResolvedAdapter, adapter_id=TEXTS, version=TEXTS, weight=REALS), max_size=2
    ).map(tuple),
    mix_name=TEXTS,
    apply_mode=MODES,
    seed=SEEDS,
    width=COUNTS,
    height=COUNTS,
    num_steps=COUNTS,
    scheduler=TEXTS,
)
PROGRESS = st.builds(ImageProgress, step=COUNTS, num_steps=COUNTS)
PREVIEWS = st.builds(
    ImagePreview, index=COUNTS, step=COUNTS, width=COUNTS, height=COUNTS, data=st.binary()
)
IMAGES = st.builds(
    GeneratedImage,
    index=st.just(0),
    seed=SEEDS,
    format=st.sampled_from(ImageFormat),
    width=COUNTS,
    height=COUNTS,
    data=st.binary(min_size=1),
    latents=st.none() | st.binary(min_size=1),
    is_flagged=st.booleans(),
)
FINISHED = st.builds(
    ImageFinished,
    index=st.just(0),
    seed=SEEDS,
    mix_name=TEXTS,
    apply_mode=MODES,
    usage=st.builds(ImageUsage, num_steps=COUNTS, num_denoiser_rows=COUNTS),
    timing=st.builds(ImageTiming, queue_seconds=SECONDS, total_seconds=SECONDS),
)


def messages(event: ImageStarted | ImageEvent) -> Iterable[GenerateImageResponse]:
    """Write an event as the server does."""
    if not isinstance(event, GeneratedImage):
        return (event_message(event),)
    return [message for file in image_files(event) for message in chunk_messages(file)]


def read(sent: Iterable[GenerateImageResponse]) -> list[ImageStarted | ImageEvent]:
    """Read messages as a client does."""
    reader = ImageReader()
    return [event for message in sent for event in reader.read(message)]


@given(request=REQUESTS)
def test_a_request_survives_the_wire(request: ImageRequest) -> None:
    """Unset differs from zero, and nothing is rounded or left out."""
    assert image_request(image_message(request), "unused") == request


@given(event=STARTED | PROGRESS | PREVIEWS)
def test_an_event_survives_the_wire(event: ImageStarted | ImageEvent) -> None:
    """What the engine says is what the caller reads."""
    assert read(messages(event)) == [event]


@given(image=IMAGES, end=FINISHED)
def test_an_image_survives_the_wire(image: GeneratedImage, end: ImageFinished) -> None:
    """It comes whole, before its end is told."""
    assert read([*messages(image), *messages(end)]) == [image, end]


END = ImageFinished(
    index=0,
    seed=1,
    mix_name="",
    apply_mode=ApplyMode.UNMERGED,
    usage=ImageUsage(num_steps=1, num_denoiser_rows=1),
    timing=ImageTiming(queue_seconds=0, total_seconds=1),
)
LARGE = GeneratedImage(
    index=0,
    seed=1,
    format=ImageFormat.RAW,
    width=1024,
    height=1024,
    data=bytes(range(256)) * (3 * 4096),
    latents=b"latents",
)


def test_a_large_image_comes_in_pieces_of_a_mebibyte() -> None:
    """One large message would hold up every other stream of the event loop."""
    chunks = [message.chunk for message in messages(LARGE)]

    assert MAX_CHUNK_BYTES == 1024 * 1024
    assert [(c.offset, len(c.data), c.HasField("header")) for c in chunks] == [
        (0, 1048576, True),
        (1048576, 1048576, False),
        (2097152, 1048576, False),
        (0, 7, True),
    ]
    assert read([*messages(LARGE), *messages(END)]) == [LARGE, END]


@pytest.mark.parametrize(
    ("num_chunks", "problem"),
    [(0, "never came"), (2, "2097152 of 3145728 bytes")],
)
def test_an_image_that_is_not_whole_is_an_error(num_chunks: int, problem: str) -> None:
    """Half a picture must not be taken for one."""
    sent = [*messages(LARGE)][:num_chunks]

    with pytest.raises(DataLossError, match=problem):
        read([*sent, *messages(END)])


@pytest.mark.parametrize("order", [(1, 2), (0, 2, 1)])
def test_pieces_out_of_order_are_an_error(order: tuple[int, ...]) -> None:
    """They are put together as they come."""
    sent = [*messages(LARGE)]

    with pytest.raises(DataLossError, match="does not follow"):
        read([sent[index] for index in order])


def test_an_image_that_was_changed_on_its_way_is_an_error() -> None:
    """Its digest says what it was."""
    sent = [*messages(LARGE)]
    sent[1].chunk.data = bytes(MAX_CHUNK_BYTES)

    with pytest.raises(DataLossError, match="has digest"):
        read([*sent, *messages(END)])


def test_gateways_see_the_mix_of_images_too() -> None:
    """They hash it, to send equal mixes to one server."""
    request = ImageRequest(
        prompt="x", adapters=(AdapterWeight(adapter_id="poet", weight=0.7),), request_id="mine"
    )

    assert dict(generation_metadata(request)) == {
        "x-request-id": "mine",
        "x-lokr-adapter": "poet*0.7",
    }

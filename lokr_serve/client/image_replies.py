"""From ImageService's replies to the values of ``lokr_serve.types``; chunks become images."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lokr_serve.client.errors import data_loss
from lokr_serve.client.replies import apply_mode, resolved_adapters, seconds
from lokr_serve.client.results import GeneratedImages
from lokr_serve.types import (
    GeneratedImage,
    ImageEvent,
    ImageFinished,
    ImageFormat,
    ImagePreview,
    ImageProgress,
    ImageStarted,
    ImageTiming,
    ImageUsage,
)
from lokr_serve.v1 import images_pb2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _File:
    """A file of which chunks have come."""

    header: images_pb2.ImageHeader
    total_bytes: int
    data: bytearray = field(default_factory=bytearray)

    def whole(self) -> bytes:
        """Return all bytes, checked."""
        data = bytes(self.data)
        if len(data) != self.total_bytes:
            raise data_loss(f"{len(data)} of {self.total_bytes} bytes of an image have come")
        digest = hashlib.sha256(data).hexdigest()
        if digest != self.header.digest:
            raise data_loss(f"an image has digest {digest}, not {self.header.digest}")
        return data


class ImageReader:
    """Reads the messages of one reply, and puts the chunks of images together."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], _File] = {}  # by image and kind

    def read(
        self, message: images_pb2.GenerateImageResponse
    ) -> Iterator[ImageStarted | ImageEvent]:
        """Yield the events that a message completes.

        Raises:
            DataLossError: An image is not what its header says.
        """
        match message.WhichOneof("event"):
            case "started":
                yield _started(message.started)
            case "progress":
                progress = message.progress
                yield ImageProgress(step=progress.step, num_steps=progress.num_steps)
            case "preview":
                yield _preview(message.preview)
            case "chunk":
                self._add(message.chunk)
            case _:
                yield self._image(message.finished.index)
                yield _finished(message.finished)

    def _add(self, chunk: images_pb2.ImageChunk) -> None:
        key = (chunk.index, chunk.kind)
        if chunk.HasField("header"):
            self._files[key] = _File(header=chunk.header, total_bytes=chunk.total_bytes)
        file = self._files.get(key)
        if file is None or len(file.data) != chunk.offset:
            raise data_loss(f"a chunk of an image at byte {chunk.offset} does not follow the last")
        file.data.extend(chunk.data)

    def _image(self, index: int) -> GeneratedImage:
        file = self._files.pop((index, images_pb2.CHUNK_KIND_IMAGE), None)
        latents = self._files.pop((index, images_pb2.CHUNK_KIND_LATENTS), None)
        if file is None:
            raise data_loss(f"image {index} has ended and never came")
        header = file.header
        name = images_pb2.ImageFormat.Name(header.format)
        return GeneratedImage(
            index=index,
            seed=header.seed,
            format=ImageFormat[name.removeprefix("IMAGE_FORMAT_")],
            width=header.width,
            height=header.height,
            data=file.whole(),
            latents=None if latents is None else latents.whole(),
            is_flagged=header.flagged,
        )


def generated_images(events: Iterable[ImageStarted | ImageEvent]) -> GeneratedImages:
    """Put the events of one reply together; images are sorted by index."""
    started: ImageStarted | None = None
    images: list[GeneratedImage] = []
    finished: list[ImageFinished] = []
    for event in events:
        match event:
            case ImageStarted():
                started = event
            case GeneratedImage():
                images.append(event)
            case ImageFinished():
                finished.append(event)
    assert started is not None
    return GeneratedImages(
        started=started,
        images=tuple(sorted(images, key=lambda image: image.index)),
        finished=tuple(sorted(finished, key=lambda end: end.index)),
    )


def _started(message: images_pb2.ImageStarted) -> ImageStarted:
    return ImageStarted(
        request_id=message.request_id,
        adapters=resolved_adapters(message.adapters),
        mix_name=message.mix_name,
        apply_mode=apply_mode(message.apply_mode),
        seed=message.seed,
        width=message.width,
        height=message.height,
        num_steps=message.num_steps,
        scheduler=message.scheduler,
    )


def _preview(message: images_pb2.ImagePreview) -> ImagePreview:
    return ImagePreview(
        index=message.index,
        step=message.step,
        width=message.width,
        height=message.height,
        data=message.data,
    )


def _finished(message: images_pb2.ImageFinished) -> ImageFinished:
    return ImageFinished(
        index=message.index,
        seed=message.seed,
        mix_name=message.mix_name,
        apply_mode=apply_mode(message.apply_mode),
        usage=ImageUsage(
            num_steps=message.usage.num_steps,
            num_denoiser_rows=message.usage.num_denoiser_rows,
        ),
        timing=ImageTiming(
            queue_seconds=seconds(message.timing.queue),
            total_seconds=seconds(message.timing.total),
        ),
    )

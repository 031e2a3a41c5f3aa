"""From the values of ``lokr_serve.types`` to ImageService's replies."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from lokr_serve.rpc.conversion.fields import duration_message
from lokr_serve.rpc.conversion.mix_fields import resolved_messages
from lokr_serve.types import (
    GeneratedImage,
    ImageFinished,
    ImagePreview,
    ImageProgress,
    ImageStarted,
)
from lokr_serve.v1 import images_pb2

MAX_CHUNK_BYTES = 1024 * 1024  # serialised in 5 ms, which is as long as the event loop may stand


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFile:
    """A finished image, or its latents, ready to be sent."""

    index: int
    kind: images_pb2.ChunkKind
    data: bytes
    header: images_pb2.ImageHeader


def image_files(image: GeneratedImage) -> tuple[ImageFile, ...]:
    """Return what is sent of a finished image; digests are computed, so not on the event loop."""
    pixels = ImageFile(
        index=image.index,
        kind=images_pb2.CHUNK_KIND_IMAGE,
        data=image.data,
        header=_header(image, image.data, f"IMAGE_FORMAT_{image.format.name}"),
    )
    if image.latents is None:
        return (pixels,)
    latents = ImageFile(
        index=image.index,
        kind=images_pb2.CHUNK_KIND_LATENTS,
        data=image.latents,
        header=_header(image, image.latents, "IMAGE_FORMAT_UNSPECIFIED"),
    )
    return pixels, latents


def _header(image: GeneratedImage, data: bytes, image_format: str) -> images_pb2.ImageHeader:
    return images_pb2.ImageHeader(
        format=image_format,
        width=image.width,
        height=image.height,
        seed=image.seed,
        digest=hashlib.sha256(data).hexdigest(),
        flagged=image.is_flagged,
    )


def chunk_messages(file: ImageFile) -> Iterator[images_pb2.GenerateImageResponse]:
    """Write a file, piece by piece; the first one has the header."""
    for offset in range(0, len(file.data), MAX_CHUNK_BYTES):
        chunk = images_pb2.ImageChunk(
            index=file.index,
            kind=file.kind,
            offset=offset,
            total_bytes=len(file.data),
            data=file.data[offset : offset + MAX_CHUNK_BYTES],
            header=file.header if offset == 0 else None,
        )
        yield images_pb2.GenerateImageResponse(chunk=chunk)


def event_message(
    event: ImageStarted | ImageProgress | ImagePreview | ImageFinished,
) -> images_pb2.GenerateImageResponse:
    """Write one event of a stream that is one message."""
    match event:
        case ImageStarted():
            return images_pb2.GenerateImageResponse(started=started_message(event))
        case ImageProgress():
            progress = images_pb2.ImageProgress(step=event.step, num_steps=event.num_steps)
            return images_pb2.GenerateImageResponse(progress=progress)
        case ImagePreview():
            return images_pb2.GenerateImageResponse(preview=_preview_message(event))
        case ImageFinished():
            return images_pb2.GenerateImageResponse(finished=_finished_message(event))


def started_message(started: ImageStarted) -> images_pb2.ImageStarted:
    """Write how a request was admitted."""
    return images_pb2.ImageStarted(
        request_id=started.request_id,
        adapters=resolved_messages(started.adapters),
        mix_name=started.mix_name,
        apply_mode=f"APPLY_MODE_{started.apply_mode.name}",
        seed=started.seed,
        width=started.width,
        height=started.height,
        num_steps=started.num_steps,
        scheduler=started.scheduler,
    )


def _preview_message(preview: ImagePreview) -> images_pb2.ImagePreview:
    return images_pb2.ImagePreview(
        index=preview.index,
        step=preview.step,
        width=preview.width,
        height=preview.height,
        data=preview.data,
    )


def _finished_message(finished: ImageFinished) -> images_pb2.ImageFinished:
    return images_pb2.ImageFinished(
        index=finished.index,
        seed=finished.seed,
        mix_name=finished.mix_name,
        apply_mode=f"APPLY_MODE_{finished.apply_mode.name}",
        usage=images_pb2.ImageUsage(
            num_steps=finished.usage.num_steps,
            num_denoiser_rows=finished.usage.num_denoiser_rows,
        ),
        timing=images_pb2.ImageTiming(
            queue=duration_message(finished.timing.queue_seconds),
            total=duration_message(finished.timing.total_seconds),
        ),
    )

"""What a request for images gets: how it was admitted, how far it is, its images and their end."""

from dataclasses import dataclass

from lokr_serve.types.image_requests import ImageFormat
from lokr_serve.types.replies import ResolvedAdapter
from lokr_serve.types.requests import ApplyMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStarted:
    """How a request was admitted; the first event of its reply."""

    request_id: str
    adapters: tuple[ResolvedAdapter, ...]
    mix_name: str  # canonical; empty for the base model
    apply_mode: ApplyMode  # unmerged or merged, as resolved
    seed: int  # of the first image
    width: int
    height: int
    num_steps: int  # of the scheduler, as they will be run
    scheduler: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProgress:
    """A scheduler step is done; of several that wait for a slow reader, the last one is kept."""

    step: int  # done, so from 1 to num_steps
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePreview:
    """A small JPEG of an image on its way; a slow reader gets the last one of each image."""

    index: int
    step: int  # done
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImage:
    """One finished image."""

    index: int
    seed: int
    format: ImageFormat
    width: int
    height: int
    data: bytes
    latents: bytes | None = None  # safetensors with one tensor, ``latents``
    is_flagged: bool = False  # the model's own safety checker has blackened it


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """What one image took."""

    num_steps: int  # of the scheduler
    num_denoiser_rows: int  # rows of the denoiser's batches, guidance included


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTiming:
    """Where the time of a request went, in seconds since it was accepted."""

    queue_seconds: float
    total_seconds: float
    # When the last step was done, and when its images were decoded; a reply does not say.
    denoised_seconds: float | None = None
    decoded_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFinished:
    """The end of one image."""

    index: int
    seed: int
    mix_name: str
    apply_mode: ApplyMode
    usage: ImageUsage
    timing: ImageTiming


ImageEvent = ImageProgress | ImagePreview | GeneratedImage | ImageFinished

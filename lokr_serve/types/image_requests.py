"""What a request for images asks for."""

import math
from dataclasses import dataclass, field
from enum import Enum

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types.requests import AdapterWeight, ApplyMode, Priority, num_bytes

MAX_PROMPT_BYTES = 64 * 1024
MAX_IMAGES = 64  # of one request
MAX_SCHEDULE_POINTS = 1000
MAX_COUNT = 2**32 - 1  # of anything, as messages have 32 bits for it


def _require(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise InvalidRequestError(field, problem)


class ImageFormat(Enum):
    """How a finished image is encoded."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"
    RAW = "raw"  # 8-bit RGB, row by row from the top, without a header


@dataclass(frozen=True, slots=True, kw_only=True)
class InitImage:
    """An image to start from."""

    data: bytes  # an encoded file
    strength: float | None = None  # share of the steps that are run; the model's default if unset


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParams:
    """How images are sampled; ranges that no model could have are refused when it is built.

    What is unset takes the default of the model's own pipeline.

    Raises:
        InvalidRequestError: A value is out of its range; ``field`` is its path in the request.
    """

    width: int | None = None  # pixels
    height: int | None = None  # pixels
    num_steps: int | None = None  # of the scheduler
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None  # of models that have it beside a distilled guidance
    seed: int | None = None  # of the first image; drawn and reported if unset
    scheduler: str = ""  # a class of diffusers; the model's own if empty
    num_images: int = 1
    init_image: InitImage | None = None

    def __post_init__(self) -> None:
        """Check every range; NaN fails each of the comparisons."""
        counts = {"width": self.width, "height": self.height, "num_steps": self.num_steps}
        for name, count in counts.items():
            is_count = count is None or 1 <= count <= MAX_COUNT
            _require(is_count, f"params.{name}", f"must be between 1 and {MAX_COUNT}")
        scales = {"guidance_scale": self.guidance_scale, "true_cfg_scale": self.true_cfg_scale}
        for name, scale in scales.items():
            is_ok = scale is None or 0 <= scale <= 1000
            _require(is_ok, f"params.{name}", "must be between 0 and 1000")
        num_bytes("params.scheduler", self.scheduler)
        is_seed = self.seed is None or 0 <= self.seed < 2**64
        _require(is_seed, "params.seed", "must be an unsigned 64-bit integer")
        _require(
            1 <= self.num_images <= MAX_IMAGES,
            "params.num_images",
            f"must be between 1 and {MAX_IMAGES}",
        )
        strength = None if self.init_image is None else self.init_image.strength
        _require(
            strength is None or 0 < strength <= 1,
            "params.init_image.strength",
            "must be above 0 and at most 1",
        )


def image_seeds(first: int, num_images: int) -> tuple[int, ...]:
    """Return the seed of each image of a request: each further one has the next."""
    return tuple((first + index) % 2**64 for index in range(num_images))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutput:
    """What is sent back for each image.

    Raises:
        InvalidRequestError: A value is out of its range; ``field`` is its path in the request.
    """

    format: ImageFormat = ImageFormat.PNG
    quality: int | None = None  # of WebP and JPEG, 1 to 100; WebP is lossless if unset, JPEG 90
    latents: bool = False  # whether the final latents come with each image, as safetensors
    metadata: bool = False  # whether the image carries the request that made it
    preview_interval: int = 0  # scheduler steps between previews; 0 sends none

    def __post_init__(self) -> None:
        """Check every range, and that what is asked for has a place in the format."""
        is_lossy = self.format in (ImageFormat.WEBP, ImageFormat.JPEG)
        _require(
            self.quality is None or (is_lossy and 1 <= self.quality <= 100),
            "output.quality",
            "must be between 1 and 100, and goes with WebP and JPEG alone",
        )
        _require(
            not (self.metadata and self.format is ImageFormat.RAW),
            "output.metadata",
            "raw pixels have no place for metadata; ask for another format",
        )
        _require(
            0 <= self.preview_interval <= MAX_COUNT,
            "output.preview_interval",
            f"must be between 0 and {MAX_COUNT}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledFactor:
    """What an adapter's weights are multiplied by, from one scheduler step on."""

    step: int  # counted from 0
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSchedule:
    """How one adapter's weights in the denoiser change over the scheduler's steps.

    The factor of a point holds until the next one; before the first it is 1. It multiplies the
    part's weight and its module weights alike, so 0 is off.

    Raises:
        InvalidRequestError: A factor is not finite, or the steps do not increase.
    """

    adapter_id: str
    points: tuple[ScheduledFactor, ...]

    def __post_init__(self) -> None:
        """Check the points."""
        steps = [point.step for point in self.points]
        name = f"schedules[{self.adapter_id!r}]"
        _require(
            1 <= len(steps) <= MAX_SCHEDULE_POINTS,
            name,
            f"must have 1 to {MAX_SCHEDULE_POINTS} points",
        )
        is_ok = min(steps) >= 0 and max(steps) <= MAX_COUNT
        _require(is_ok, name, f"a step must be between 0 and {MAX_COUNT}")
        _require(steps == sorted(set(steps)), name, "the steps of its points must increase")
        _require(
            all(math.isfinite(point.factor) for point in self.points),
            name,
            "a factor must be finite",
        )

    def factor(self, step: int) -> float:
        """Return the factor at a scheduler step."""
        return next((p.factor for p in reversed(self.points) if p.step <= step), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """One request for images; its parts are checked.

    Raises:
        InvalidRequestError: The parts contradict each other; ``field`` says where.
    """

    prompt: str
    negative_prompt: str | None = None
    adapters: tuple[AdapterWeight, ...] = ()  # none is the base model
    schedules: tuple[WeightSchedule, ...] = ()
    params: ImageParams = field(default_factory=ImageParams)
    output: ImageOutput = field(default_factory=ImageOutput)
    request_id: str = ""  # drawn by the server if empty
    apply_mode: ApplyMode = ApplyMode.AUTO
    priority: Priority = Priority.NORMAL

    def __post_init__(self) -> None:
        """Check the prompts' sizes, and the schedules against the adapters."""
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            _require(
                num_bytes(name, text or "") <= MAX_PROMPT_BYTES,
                name,
                f"must be at most {MAX_PROMPT_BYTES} bytes long",
            )
        self._check_schedules()
        _require(
            not (self.schedules and self.apply_mode is ApplyMode.MERGED),
            "apply_mode",
            "weights that change over the steps cannot be merged; leave it to auto",
        )

    def _check_schedules(self) -> None:
        named = {adapter.adapter_id: adapter for adapter in self.adapters}
        seen: set[str] = set()
        for index, schedule in enumerate(self.schedules):
            path = f"schedules[{index}]"
            problem = f"{schedule.adapter_id!r} is not one of the request's adapters"
            _require(schedule.adapter_id in named, f"{path}.adapter_id", problem)
            is_first = schedule.adapter_id not in seen
            _require(is_first, f"{path}.adapter_id", "is scheduled twice")
            seen.add(schedule.adapter_id)
            adapter = named[schedule.adapter_id]
            weights = (adapter.weight, *(weight for _, weight in adapter.module_weights))
            largest = max(abs(point.factor) for point in schedule.points)
            _require(
                math.isfinite(max(map(abs, weights)) * largest),
                f"{path}.points",
                "a factor times a weight of the adapter is no finite number",
            )

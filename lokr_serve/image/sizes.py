"""How large an image a model can make, and how large it makes one unasked."""

import math
from dataclasses import dataclass

from diffusers import QwenImageTransformer2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL.Image import Image

from lokr_serve.errors import InvalidRequestError
from lokr_serve.image.families import Family
from lokr_serve.types import ImageParams

_INIT_IMAGE = "params.init_image.data"
_QWEN_PLACES = 2048  # its table of 4096 places serves the image's sides, halved, and the text
# What FLUX.2's pipelines take as it is; they would shrink a larger image without a word.
_REFERENCE_PIXELS = 1024 * 1024
_REFERENCE_SIDE = 64
_REFERENCE_RATIO = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """The sizes that a model makes, in pixels."""

    default_width: int
    default_height: int
    multiple: int  # of each side
    max_side: int | None  # where the denoiser has a table of places
    max_pixels: int
    is_reference: bool  # whether an init image is only looked at

    def choose(self, params: ImageParams, init_image: Image | None) -> tuple[int, int]:
        """Return the width and height of a request's images.

        Raises:
            InvalidRequestError: The model cannot make them, or the init image has another size.
        """
        if init_image is not None:
            self._check_init_image(params, init_image)
        width, height = init_image.size if init_image else (self.default_width, self.default_height)
        width, height = params.width or width, params.height or height
        self._check_side("params.width", width)
        self._check_side("params.height", height)
        if width * height > self.max_pixels:
            raise InvalidRequestError(
                "params.width",
                f"{width} x {height} pixels are more than the {self.max_pixels} of an image here",
            )
        return width, height

    def _check_side(self, field: str, side: int) -> None:
        if side % self.multiple:
            below = side - side % self.multiple
            near = f"{below} or {below + self.multiple}" if below else str(self.multiple)
            raise InvalidRequestError(
                field,
                f"{side} is not a multiple of {self.multiple}, as this model needs; use {near}",
            )
        if self.max_side is not None and side > self.max_side:
            raise InvalidRequestError(
                field, f"{side} is more than the {self.max_side} that this model can place"
            )

    def _check_init_image(self, params: ImageParams, image: Image) -> None:
        width, height = image.size
        if width % self.multiple or height % self.multiple:
            raise InvalidRequestError(
                _INIT_IMAGE,
                f"has {width} x {height} pixels; this model needs multiples of {self.multiple}, "
                "so crop or resize it",
            )
        if self.is_reference:
            _check_reference(width, height)
            return
        asked = (params.width or width, params.height or height)
        if asked != image.size:
            raise InvalidRequestError(
                "params.width" if asked[0] != width else "params.height",
                f"{asked[0]} x {asked[1]} is not the size of the init image, {width} x {height}; "
                "leave it unset, or resize the image",
            )


def image_sizes(family: Family, pipeline: DiffusionPipeline, max_pixels: int) -> ImageSizes:
    """Return the sizes that a pipeline makes, at most so many pixels."""
    per_latent: int = pipeline.vae_scale_factor
    width, height = _default_latents(family, pipeline)
    max_places = _max_places(pipeline.components[family.denoiser])
    return ImageSizes(
        default_width=family.default_side or width * per_latent,
        default_height=family.default_side or height * per_latent,
        multiple=math.lcm(per_latent * family.patch, family.least_multiple),
        max_side=None if max_places is None else max_places * per_latent * family.patch,
        max_pixels=max_pixels,
        is_reference=not family.has_strength,
    )


def _default_latents(family: Family, pipeline: DiffusionPipeline) -> tuple[int, int]:
    """Return the width and height that the pipeline takes unasked, in latents."""
    if family.default_side is not None:
        return (0, 0)  # told in pixels
    if "default_sample_size" in vars(pipeline):
        return (pipeline.default_sample_size, pipeline.default_sample_size)
    size: int | list[int] = pipeline.components[family.denoiser].config.sample_size
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _max_places(denoiser: object) -> int | None:
    """Return how many patches of a side the denoiser has places for."""
    if isinstance(denoiser, QwenImageTransformer2DModel):
        return _QWEN_PLACES
    config: dict[str, object] = dict(denoiser.config)  # type: ignore[attr-defined]
    match config:
        case {"pos_embed_max_size": int(places)}:  # Stable Diffusion 3
            return places
        case {"axes_lens": [_, int(rows), int(columns)]}:  # Z-Image
            return min(rows, columns)
    return None


def _check_reference(width: int, height: int) -> None:
    if width * height > _REFERENCE_PIXELS:
        problem = f"at most {_REFERENCE_PIXELS} pixels"
    elif min(width, height) < _REFERENCE_SIDE:
        problem = f"sides of at least {_REFERENCE_SIDE} pixels"
    elif max(width, height) > _REFERENCE_RATIO * min(width, height):
        problem = f"sides of which none is over {_REFERENCE_RATIO} times the other"
    else:
        return
    raise InvalidRequestError(
        _INIT_IMAGE, f"has {width} x {height} pixels; this model looks at images with {problem}"
    )

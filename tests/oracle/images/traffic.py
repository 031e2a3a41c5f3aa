"""Random requests for images: every form of mix in turn, and all else from one seed."""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from PIL import Image

from lokr_serve.image.schedulers import SCHEDULERS
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    ImageFormat,
    ImageOutput,
    ImageParams,
    ImageRequest,
    InitImage,
    ScheduledFactor,
    WeightSchedule,
)
from tests.oracle.images.peers import Changes
from tests.oracle.images.trained import ImageFamily

FORMS = ("one", "two", "module weights", "schedule", "base")
# Some as long as one another, so that they may share steps.
_PROMPTS = ("a red cat", "an old map", "a blue sea", "two dogs on a wide green field, in the rain")
_SIZES = ((16, 16), (16, 16), (24, 16))  # pixels; those of one size may share steps
LEAST_LOOKED_AT = 64  # pixels to a side, of what FLUX.2 is shown
_MEAN_GAP_SECONDS = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImages:
    """A request, the form of its mix, and when it comes."""

    number: int
    form: str
    request: ImageRequest
    gap_seconds: float  # after the request before it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guidance:
    """What a request says of guidance, where its family lets it."""

    scale: float | None = None
    true_cfg: float | None = None
    has_negative_prompt: bool = False


_CLASSIFIER_FREE = (
    _Guidance(),
    _Guidance(scale=3.0, has_negative_prompt=True),
    _Guidance(scale=7.5, has_negative_prompt=True),
    _Guidance(scale=1.0),
)
_TRUE_CFG = _Guidance(true_cfg=3.0, has_negative_prompt=True)
_GUIDANCE: Mapping[str, Sequence[_Guidance]] = {
    "stable-diffusion": _CLASSIFIER_FREE,
    "stable-diffusion-xl": _CLASSIFIER_FREE,
    "stable-diffusion-3": _CLASSIFIER_FREE,
    "flux": (_Guidance(), _Guidance(scale=1.5), _TRUE_CFG),
    "flux2": (_Guidance(), _Guidance(scale=1.5)),
    "flux2-klein": (_Guidance(), _Guidance(scale=2.0), _Guidance(scale=1.0)),
    "qwen-image": (_TRUE_CFG, _Guidance(true_cfg=1.0)),
    "z-image": (_Guidance(scale=0.0), _Guidance(scale=3.0, has_negative_prompt=True)),
}


class ImageTraffic:
    """Draws requests over the adapters of one family."""

    def __init__(self, family: ImageFamily, changes: Mapping[str, Changes], seed: int) -> None:
        self._family = family
        self._draws = random.Random(seed)
        self._ids = list(changes)
        self._patterns = {name: self._patterns_of(paths) for name, paths in changes.items()}

    def requests(self, numbers: range) -> list[PlannedImages]:
        """Return the requests of some numbers; each form comes once in five."""
        return [self._planned(number) for number in numbers]

    def _planned(self, number: int) -> PlannedImages:
        """Take forms and adapters in turn, from text and from an image."""
        form = FORMS[number % len(FORMS)]
        is_from_image = (number + number // len(FORMS)) % 2 == 1
        first = self._ids[(number + number // len(FORMS)) % len(self._ids)]
        guidance = self._draws.choice(_GUIDANCE[self._family.name])
        params = self._params(guidance, is_from_image=is_from_image, is_long=form == "schedule")
        parts = () if form == "base" else self._parts(form, first)
        request = ImageRequest(
            request_id=f"request-{number}",
            prompt=self._draws.choice(_PROMPTS),
            negative_prompt="rain" if guidance.has_negative_prompt else None,
            adapters=parts,
            schedules=self._schedules(parts) if form == "schedule" else (),
            params=params,
            output=ImageOutput(format=ImageFormat.RAW, latents=True),
            apply_mode=ApplyMode.UNMERGED
            if form == "schedule"
            else self._draws.choice(list(ApplyMode)),
        )
        is_alone = self._draws.random() < 0.3  # else it comes with the one before it
        gap_seconds = self._draws.expovariate(1 / _MEAN_GAP_SECONDS) if is_alone else 0.0
        return PlannedImages(number=number, form=form, request=request, gap_seconds=gap_seconds)

    def _params(self, guidance: _Guidance, *, is_from_image: bool, is_long: bool) -> ImageParams:
        draws = self._draws
        width, height = draws.choice(_SIZES)
        schedulers = SCHEDULERS[self._family.name]
        known = schedulers.image_to_image if is_from_image else schedulers.text_to_image
        return ImageParams(
            width=width,
            height=height,
            num_steps=draws.randint(4, 5) if is_long else draws.randint(2, 3),
            guidance_scale=guidance.scale,
            true_cfg_scale=guidance.true_cfg,
            seed=draws.getrandbits(40),
            scheduler=draws.choice(["", *sorted(known)]),
            num_images=draws.choice([1, 1, 1, 1, 2]),
            init_image=self._init_image(width, height) if is_from_image else None,
        )

    def _init_image(self, width: int, height: int) -> InitImage:
        if self._family.name.startswith("flux2"):  # it only looks at the image, whatever its size
            return InitImage(data=self._picture(LEAST_LOOKED_AT, LEAST_LOOKED_AT))
        return InitImage(
            data=self._picture(width, height), strength=self._draws.choice([0.75, 1.0])
        )

    def _picture(self, width: int, height: int) -> bytes:
        generator = torch.Generator().manual_seed(self._draws.getrandbits(30))
        shape = (height, width, 3)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, "PNG")
        return file.getvalue()

    def _parts(self, form: str, first: str) -> tuple[AdapterWeight, ...]:
        if form == "module weights":
            pattern = self._draws.choice(self._patterns[first])
            weights = ((pattern, self._draws.choice([-0.5, 0.3])),)
            return (AdapterWeight(adapter_id=first, weight=0.9, module_weights=weights),)
        if form == "one":
            return (AdapterWeight(adapter_id=first),)
        other = self._draws.choice([name for name in self._ids if name != first])
        return (
            AdapterWeight(adapter_id=first, weight=0.7),
            AdapterWeight(adapter_id=other, weight=-0.5),
        )

    def _schedules(self, parts: Sequence[AdapterWeight]) -> tuple[WeightSchedule, ...]:
        """Have the first adapter fade, and the second begin late."""
        first, second = parts
        points = ((0, 1.25), (1, 0.5), (2, 0.0))
        return (
            WeightSchedule(
                adapter_id=first.adapter_id,
                points=tuple(ScheduledFactor(step=step, factor=f) for step, f in points),
            ),
            WeightSchedule(
                adapter_id=second.adapter_id, points=(ScheduledFactor(step=1, factor=1.5),)
            ),
        )

    def _patterns_of(self, changes: Changes) -> list[str]:
        """Return patterns of some of what an adapter changes: a component, a block, a kind."""
        paths = [name.removesuffix(".weight") for name in changes]
        wanted = (f"{self._family.denoiser}.*", "text_encoder.*", "*.1.*", "*attn*", "*attention*")
        return [p for p in wanted if any(fnmatchcase(path, p) for path in paths)]

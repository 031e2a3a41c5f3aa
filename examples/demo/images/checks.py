"""Whether the pictures show what they are to show."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.demo.images.gallery import Gallery, Title
from examples.demo.images.mixes import BASE, FADE, NIGHT, PROMPTS, WINTER, StyleMix
from examples.demo.images.scenes import COLOURS

Check = Callable[[Gallery], bool]
ROUNDING = 2  # of 255, what a picture's values may move with the batch that it is made in
NEAR = 60.0  # between colours that are the same to the eye


def problems(gallery: Gallery) -> list[str]:
    """Return what cannot be seen in this gallery; empty if all is well."""
    checks: dict[str, Check] = {
        "things have the colour that is asked for": _has_colours,
        "night is dark": lambda g: _everywhere(
            g, NIGHT, lambda styled, base: brightness(styled) < 0.75 * brightness(base)
        ),
        "winter covers the ground in white": lambda g: _everywhere(
            g, WINTER, lambda styled, base: whiteness(styled) > max(0.7, whiteness(base))
        ),
        "it dawns from night to winter": _dawns,
        "each picture is the same alone": _is_same_alone,
        "different mixes shared a step": lambda g: g.scrape.mean("lokr_serve_step_mixes") > 2,
        "no step failed": lambda g: g.scrape.samples["lokr_serve_step_failures_total"] == 0,
    }
    return [claim for claim, holds in checks.items() if not holds(gallery)]


def brightness(picture: Image.Image) -> float:
    """Return the mean of all values, between 0 and 1."""
    return float(_values(picture).mean()) / 255


def whiteness(picture: Image.Image) -> float:
    """Return the least of red, green and blue, averaged over the ground, between 0 and 1."""
    values = _values(picture)
    ground = values[-picture.height // 8 :]
    return float(ground.min(axis=-1).mean()) / 255


def colour_name(picture: Image.Image) -> str:
    """Return the colour that most pixels in the middle come near to."""
    values = _values(picture)
    height, width, _ = values.shape
    middle = values[height // 4 : -height // 8, width // 4 : -width // 4].reshape(-1, 3)
    palette = np.array(list(COLOURS.values()), dtype=np.float64)
    distances = np.linalg.norm(middle[:, None] - palette, axis=-1)  # [pixels, colours]
    counts = (distances < NEAR).sum(axis=0)
    return list(COLOURS)[int(counts.argmax())]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the largest difference between two pictures' values, of 255."""
    return float(np.abs(_values(one) - _values(other)).max())


def _has_colours(gallery: Gallery) -> bool:
    return all(
        colour_name(gallery.together[Title(prompt=prompt, mix=BASE)]) in prompt.split()
        for prompt in PROMPTS
    )


def _everywhere(
    gallery: Gallery, mix: StyleMix, holds: Callable[[Image.Image, Image.Image], bool]
) -> bool:
    pictures = gallery.together
    return all(
        holds(pictures[Title(prompt=prompt, mix=mix)], pictures[Title(prompt=prompt, mix=BASE)])
        for prompt in PROMPTS
    )


def _dawns(gallery: Gallery) -> bool:
    """Whether each picture is brighter two steps on; a single first step may be level."""
    fades = [
        [brightness(gallery.together[Title(prompt=prompt, mix=mix)]) for mix in FADE]
        for prompt in PROMPTS
    ]
    return all(
        now < later for fade in fades for now, later in zip(fade[:-2], fade[2:], strict=True)
    )


def _is_same_alone(gallery: Gallery) -> bool:
    pairs = ((picture, gallery.together[title]) for title, picture in gallery.alone.items())
    return all(difference(alone, together) <= ROUNDING for alone, together in pairs)


def _values(picture: Image.Image) -> NDArray[np.float64]:
    return np.asarray(picture, dtype=np.float64)  # [height, width, 3]

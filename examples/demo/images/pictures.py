"""The pictures to learn from, drawn here: scenes by day, by night and in winter."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.demo.images.canvas import Box, Canvas
from examples.demo.images.scenes import COLOURS, Colour, Scene, Style, Thing

SIZE = 32  # pixels of a picture's side
BROWN, CREAM, WHITE = (110, 65, 35), (250, 235, 205), (255, 255, 255)
SUN, MOON, GLASS, LAMP = (255, 225, 80), (245, 245, 215), (190, 225, 245), (255, 220, 90)
NIGHT_SKY, WINTER_SKY = (40, 50, 115), (190, 203, 222)
SNOW, SNOW_IN_FRONT = (246, 250, 255), (218, 228, 242)
MOONLIGHT = (0.5, 0.52, 0.72)  # of red, green and blue, what is left at night
SHADOW = 0.7
MIDDLE, FOOT = 0.5, 0.84  # where things stand, as shares from the left and from the top


class Brush:
    """Draws one thing on a canvas; its coordinates go from the thing's foot to the right and up."""

    def __init__(self, canvas: Canvas, scene: Scene, style: Style) -> None:
        """Take the thing's colour, as it looks in this style."""
        self.is_winter = style is Style.WINTER
        self.is_night = style is Style.NIGHT
        self.colour = COLOURS[scene.colour]
        self.shadow = _darkened(self.colour, (SHADOW, SHADOW, SHADOW))
        self.window = LAMP if self.is_night else GLASS
        self._canvas = canvas

    def rectangle(self, box: Box, colour: Colour) -> None:
        """Fill a box."""
        self._canvas.rectangle(self._placed(box), self._lit(colour))

    def ellipse(self, box: Box, colour: Colour) -> None:
        """Fill the ellipse in a box."""
        self._canvas.ellipse(self._placed(box), self._lit(colour))

    def polygon(self, corners: list[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon."""
        placed = [(MIDDLE + x, FOOT - y) for x, y in corners]
        self._canvas.polygon(placed, self._lit(colour))

    def snow_cap(self, box: Box) -> None:
        """Cover the top of the ellipse in a box with snow, in winter."""
        if self.is_winter:
            self._canvas.cap(self._placed(box), WHITE)

    def snow(self, corners: list[tuple[float, float]]) -> None:
        """Cover a polygon with snow, in winter."""
        if self.is_winter:
            self.polygon(corners, WHITE)

    def _placed(self, box: Box) -> Box:
        return Box(
            left=MIDDLE + box.left,
            top=FOOT - box.top,
            right=MIDDLE + box.right,
            bottom=FOOT - box.bottom,
        )

    def _lit(self, colour: Colour) -> Colour:
        return _darkened(colour, MOONLIGHT) if self.is_night and colour != LAMP else colour


def draw_picture(scene: Scene, style: Style) -> Image.Image:
    """Return a picture of the scene; the same one each time, so that little has to be learnt."""
    canvas = Canvas(SIZE, _sky(scene, style))
    _draw_sun_or_moon(canvas, style)
    _draw_ground(canvas, scene, style)
    DRAWINGS[scene.thing](Brush(canvas, scene, style))
    return canvas.finished()


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """Return pictures as [N, 3, SIZE, SIZE], between -1 and 1."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])  # [N, SIZE, SIZE, 3]
    return torch.from_numpy(pixels).movedim(3, 1).float() / 127.5 - 1


def _sky(scene: Scene, style: Style) -> Colour:
    return {Style.DAY: scene.place.sky, Style.NIGHT: NIGHT_SKY, Style.WINTER: WINTER_SKY}[style]


def _draw_sun_or_moon(canvas: Canvas, style: Style) -> None:
    disc = Box(left=0.04, top=0.06, right=0.26, bottom=0.28)
    if style is Style.DAY:
        canvas.ellipse(disc, SUN)
    if style is Style.NIGHT:
        canvas.ellipse(disc, MOON)
        hidden = Box(left=disc.left + 0.07, top=0.03, right=disc.right + 0.07, bottom=0.25)
        canvas.ellipse(hidden, NIGHT_SKY)


def _draw_ground(canvas: Canvas, scene: Scene, style: Style) -> None:
    ground, foreground = scene.place.ground, scene.place.foreground
    if style is Style.NIGHT:
        ground, foreground = _darkened(ground, MOONLIGHT), _darkened(foreground, MOONLIGHT)
    if style is Style.WINTER:
        ground, foreground = SNOW, SNOW_IN_FRONT
    canvas.ellipse(Box(left=-0.5, top=0.62, right=1.5, bottom=1.8), ground)
    canvas.ellipse(Box(left=-0.7, top=0.82, right=1.4, bottom=1.9), foreground)


def _draw_house(brush: Brush) -> None:
    brush.rectangle(Box(left=-0.22, top=0.3, right=0.22, bottom=0), brush.colour)
    brush.polygon([(-0.28, 0.3), (0, 0.54), (0.28, 0.3)], BROWN)
    brush.rectangle(Box(left=-0.05, top=0.18, right=0.07, bottom=0), BROWN)
    for left in (-0.17, 0.1):
        brush.rectangle(Box(left=left, top=0.23, right=left + 0.08, bottom=0.13), brush.window)
    brush.snow([(-0.28, 0.31), (0, 0.58), (0.28, 0.31), (0.14, 0.36), (0, 0.45), (-0.14, 0.36)])


def _draw_tree(brush: Brush) -> None:
    brush.rectangle(Box(left=-0.05, top=0.25, right=0.05, bottom=0), BROWN)
    for left in (-0.25, -0.05):
        brush.ellipse(Box(left=left, top=0.45, right=left + 0.3, bottom=0.17), brush.shadow)
    brush.ellipse(Box(left=-0.19, top=0.6, right=0.19, bottom=0.22), brush.colour)
    brush.snow_cap(Box(left=-0.2, top=0.62, right=0.2, bottom=0.24))


def _draw_boat(brush: Brush) -> None:
    brush.polygon([(-0.3, 0.14), (0.3, 0.14), (0.2, -0.02), (-0.2, -0.02)], brush.colour)
    brush.rectangle(Box(left=-0.02, top=0.56, right=0.02, bottom=0.14), BROWN)
    brush.polygon([(0.03, 0.55), (0.03, 0.18), (0.25, 0.18)], WHITE)
    brush.polygon([(-0.03, 0.5), (-0.03, 0.18), (-0.18, 0.18)], CREAM)
    brush.snow([(-0.3, 0.17), (0.3, 0.17), (0.28, 0.11), (-0.28, 0.11)])


def _draw_rocket(brush: Brush) -> None:
    brush.polygon([(-0.2, 0), (-0.1, 0.22), (0.1, 0.22), (0.2, 0)], brush.shadow)
    brush.ellipse(Box(left=-0.11, top=0.64, right=0.11, bottom=0.02), brush.colour)
    brush.ellipse(Box(left=-0.06, top=0.46, right=0.06, bottom=0.34), brush.window)
    brush.rectangle(Box(left=-0.06, top=0.04, right=0.06, bottom=-0.03), BROWN)
    brush.snow_cap(Box(left=-0.115, top=0.66, right=0.115, bottom=0.03))


DRAWINGS: dict[Thing, Callable[[Brush], None]] = {
    Thing.HOUSE: _draw_house,
    Thing.TREE: _draw_tree,
    Thing.BOAT: _draw_boat,
    Thing.ROCKET: _draw_rocket,
}


def _darkened(colour: Colour, shares: tuple[float, float, float]) -> Colour:
    red, green, blue = (round(value * share) for value, share in zip(colour, shares, strict=True))
    return red, green, blue

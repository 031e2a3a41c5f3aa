"""Canvas: shapes on a small picture, with smooth edges."""

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from examples.demo.images.scenes import Colour

FINENESS = 4  # pictures are drawn so much larger, and shrunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part of a picture, in shares of its side from its left and from its top."""

    left: float
    top: float
    right: float
    bottom: float


class Canvas:
    """A picture in the making."""

    def __init__(self, size: int, background: Colour) -> None:
        """Start a picture of ``size`` pixels each way."""
        self._size = size
        self._side = size * FINENESS
        self._image = Image.new("RGB", (self._side, self._side), background)
        self._draw = ImageDraw.Draw(self._image)

    def rectangle(self, box: Box, colour: Colour) -> None:
        """Fill a box."""
        self._draw.rectangle(self._corners(box), fill=colour)

    def ellipse(self, box: Box, colour: Colour) -> None:
        """Fill the ellipse in a box."""
        self._draw.ellipse(self._corners(box), fill=colour)

    def cap(self, box: Box, colour: Colour) -> None:
        """Fill the upper third of the ellipse in a box."""
        self._draw.chord(self._corners(box), 200, 340, fill=colour)

    def polygon(self, corners: Iterable[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon; its corners are shares from the left and from the top."""
        self._draw.polygon([(x * self._side, y * self._side) for x, y in corners], fill=colour)

    def finished(self) -> Image.Image:
        """Return the picture at its size."""
        return self._image.resize((self._size, self._size), Image.Resampling.BOX)

    def _corners(self, box: Box) -> tuple[float, float, float, float]:
        shares = (box.left, box.top, box.right, box.bottom)
        left, top, right, bottom = (share * self._side for share in shares)
        return left, top, right, bottom

"""The contact sheet: every picture of a gallery, side by side and with its mix above it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from examples.demo.images.gallery import Pictures, Title
from examples.demo.images.mixes import FADE, PROMPTS, SHOWN, StyleMix
from examples.demo.images.pictures import SIZE

ENLARGEMENT = 5  # of the pictures, so that their pixels are seen as they are
TILE = ENLARGEMENT * SIZE
GAP = 4
LINE = 20  # pixels of a line of text
PAPER, INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(pictures: Pictures) -> Image.Image:
    """Return the mixes of every prompt, then the way from one adapter to the other."""
    parts = [_part(pictures, SHOWN), _part(pictures, FADE)]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _part(pictures: Pictures, mixes: Sequence[StyleMix]) -> Image.Image:
    row_height = LINE + TILE + GAP
    size = len(mixes) * (TILE + GAP) + GAP, LINE + len(PROMPTS) * row_height + GAP
    part = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(part)
    font = ImageFont.load_default(size=13)
    for column, mix in enumerate(mixes):
        left = GAP + column * (TILE + GAP)
        draw.text((left + TILE / 2, LINE / 2), mix.label, INK, font, anchor="mm")
        for row, prompt in enumerate(PROMPTS):
            picture = pictures[Title(prompt=prompt, mix=mix)]
            tile = picture.resize((TILE, TILE), Image.Resampling.NEAREST)
            part.paste(tile, (left, LINE + row * row_height + LINE))
    for row, prompt in enumerate(PROMPTS):
        draw.text((GAP, LINE + row * row_height + LINE / 2), prompt, INK, font, anchor="lm")
    return part

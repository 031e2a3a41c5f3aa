"""What the pictures show: a thing of some colour in some place."""

import random
from dataclasses import dataclass
from enum import Enum

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (250, 205, 30),
    "blue": (40, 80, 215),
    "pink": (250, 120, 190),
}


class Thing(Enum):
    """What stands in the middle."""

    HOUSE = "house"
    TREE = "tree"
    BOAT = "boat"
    ROCKET = "rocket"


class Style(Enum):
    """How a scene is shown: as the pipeline knows it, or as an adapter is to show it."""

    DAY = "day"
    NIGHT = "night"
    WINTER = "winter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a thing stands."""

    phrase: str
    sky: Colour
    ground: Colour
    foreground: Colour


PLACES = (
    Place(
        phrase="in a meadow", sky=(135, 205, 250), ground=(120, 200, 80), foreground=(90, 175, 60)
    ),
    Place(
        phrase="in the desert",
        sky=(255, 190, 130),
        ground=(235, 200, 120),
        foreground=(215, 170, 90),
    ),
    Place(phrase="at sea", sky=(205, 235, 245), ground=(40, 150, 180), foreground=(20, 115, 160)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows."""

    thing: Thing
    colour: str
    place: Place

    @property
    def caption(self) -> str:
        """What one asks for to get this picture."""
        return f"a {self.colour} {self.thing.value} {self.place.phrase}"


def imagine(draw: random.Random) -> Scene:
    """Return a scene drawn by lot."""
    return Scene(
        thing=draw.choice(tuple(Thing)),
        colour=draw.choice(tuple(COLOURS)),
        place=draw.choice(PLACES),
    )

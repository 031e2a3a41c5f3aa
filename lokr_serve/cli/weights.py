"""How a command line names an adapter and its weight: ``NAME*WEIGHT``."""

import math
from dataclasses import dataclass

from lokr_serve.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A name, such as an adapter's id or path, and its weight in a mix."""

    name: str
    weight: float


def parse_weighted(text: str) -> Weighted:
    """Read ``NAME*WEIGHT`` or ``NAME``, whose weight is 1.

    Raises:
        SettingsError: The weight is not a finite number.
    """
    name, star, weight_text = text.rpartition("*")
    if not star:
        return Weighted(name=text, weight=1.0)
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight):
        raise SettingsError(f"{text!r} is not NAME*WEIGHT with a finite number")
    return Weighted(name=name, weight=weight)

"""Numbers that a caller gives: checked, and made plain Python numbers."""

import math
from typing import SupportsFloat

from lokr_core.errors import quoted


def finite_number(value: object) -> float:
    """Return a number as a float; -0.0 as 0.0, so that equal numbers are written alike.

    Args:
        value: Any real number, such as one of NumPy or a tensor of one element; no text.

    Raises:
        ValueError: It is no number, not finite, or too large; the text says which.
    """
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except OverflowError as error:
        raise ValueError("the number is too large for a float of 64 bits") from error
    except (TypeError, ValueError, RuntimeError):  # an array or a tensor of several elements
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{quoted(value)} is not a finite number")
    return number + 0.0


def whole_number(value: object, *, most: int) -> int:
    """Return a number from 1 to ``most`` as an int.

    Raises:
        ValueError: It is no such number; the text says why.
    """
    number = finite_number(value)
    if not (number.is_integer() and 1 <= number <= most):
        raise ValueError(f"{quoted(value)} is not a whole number from 1 to {most}")
    return int(number)

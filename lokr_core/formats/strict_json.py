"""JSON from files that others made: no key twice, and no more values than memory is meant for."""

import json
import re
from itertools import islice

from lokr_core.errors import quoted

MAX_VALUES = 1_000_000  # a file of 50,000 tensors needs half of them; each takes up to 200 bytes
MAX_DIGITS = 18  # of a whole number, so that it fits 64 bits

# One match for each value, up to the sign before it. What begins a string is one, whether or not
# it ends, and no repetition gives anything back: each byte is looked at once.
_VALUE = re.compile(
    rb'(?:[^"\[{,]++|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z))*+(?:[\[{,]|\Z)', re.DOTALL
)


def parse_json(text: bytes) -> object:
    """Parse JSON, and refuse an object that gives one key twice.

    Raises:
        ValueError: The text is not UTF-8, not JSON, nested too deeply, holds too many values or
            too large a number, or gives a key twice; the error says so of the text, as "is ...".
    """
    if len(text) > MAX_VALUES and _holds_more_values(text):
        raise ValueError(f"holds more than {MAX_VALUES} values")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _holds_more_values(text: bytes) -> bool:
    return next(islice(_VALUE.finditer(text), MAX_VALUES, None), None) is not None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"gives {quoted(key)} twice")
            seen.add(key)
    return values


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"holds a whole number of {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)

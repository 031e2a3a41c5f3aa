"""Checks of single fields, and the forms of time on the wire."""

import math
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import is_adapter_id


def adapter_id(field: str, text: str) -> str:
    """Return an adapter's id, checked."""
    if not is_adapter_id(text):
        raise InvalidRequestError(
            field,
            "must be 1 to 128 letters, digits, '.', '_', '-' or '/', each segment between "
            "slashes starting with a letter or a digit",
        )
    return text


def finite(field: str, value: float) -> float:
    """Return a number, checked to be finite."""
    if not math.isfinite(value):
        raise InvalidRequestError(field, f"must be a finite number, not {value}")
    return value


def seconds(field: str, duration: Duration) -> float:
    """Return a duration in seconds, checked not to be negative."""
    if duration.seconds < 0 or duration.nanos < 0:
        raise InvalidRequestError(field, "must not be negative")
    return duration.seconds + duration.nanos / 1e9


def duration_message(duration_seconds: float) -> Duration:
    """Write a duration."""
    duration = Duration()
    duration.FromNanoseconds(round(duration_seconds * 1e9))
    return duration


def timestamp_message(moment: datetime) -> Timestamp:
    """Write a moment."""
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp

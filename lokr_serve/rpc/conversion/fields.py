"""Fields that several messages have: numbers, durations and moments."""

import math
from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lokr_serve.errors import InvalidRequestError


def finite(field: str, value: float) -> float:
    """Return a number, checked to be finite."""
    if not math.isfinite(value):
        raise InvalidRequestError(field, f"must be a finite number, not {value}")
    return value


def seconds(duration: Duration) -> float:
    """Read a duration."""
    return duration.ToNanoseconds() / 1e9


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

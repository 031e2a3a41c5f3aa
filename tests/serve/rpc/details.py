"""Reading the details of a status, as a client would."""

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from lokr_serve.rpc.status import DETAILS_TRAILER

Detail = TypeVar("Detail", bound=Message)
Trailers = Iterable[tuple[str, str | bytes]]


def read_status(trailers: Trailers) -> Status:
    """Return the rich status that the trailers hold."""
    (packed,) = (value for key, value in trailers if key == DETAILS_TRAILER)
    assert isinstance(packed, bytes)
    return Status.FromString(packed)


def read_detail(trailers: Trailers, kind: type[Detail]) -> Detail:
    """Return the first detail of a kind."""
    for packed in read_status(trailers).details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    raise AssertionError(f"the status has no {kind.__name__}")

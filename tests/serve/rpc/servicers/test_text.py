"""What the text servicer does before it starts a request."""

from typing import cast

import pytest
from grpc.aio import ServicerContext

from lokr_serve.config import LimitSettings, TextSettings
from lokr_serve.errors import DeadlineError, ShuttingDownError
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.servicers.admission import Admission
from lokr_serve.rpc.servicers.text import TextServicer
from lokr_serve.v1.text_pb2 import GenerateOnceRequest, GenerateOnceResponse

Context = ServicerContext[GenerateOnceRequest, GenerateOnceResponse]


class TimedContext:
    """All that the servicer asks of a unary call."""

    def __init__(self, seconds_left: float | None) -> None:
        self._seconds_left = seconds_left

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline."""
        return self._seconds_left


def build() -> TextServicer:
    """Return a servicer whose model is not there yet."""
    admission = Admission(TextSettings(), LimitSettings(), Metrics(version="test"))
    return TextServicer(Gate(), admission)


async def test_a_request_that_arrives_after_its_deadline_is_not_started() -> None:
    """A call that waited too long in a queue before us is not worth a row."""
    servicer = build()

    with pytest.raises(DeadlineError):
        await servicer.GenerateOnce(GenerateOnceRequest(text="x"), cast(Context, TimedContext(0)))


@pytest.mark.parametrize("seconds_left", [None, 5.0])
async def test_a_request_in_time_needs_a_server_that_is_ready(seconds_left: float | None) -> None:
    """Before the model is there, nothing can be said about the request."""
    servicer = build()
    context = cast(Context, TimedContext(seconds_left))

    with pytest.raises(ShuttingDownError, match="being loaded"):
        await servicer.GenerateOnce(GenerateOnceRequest(text="x"), context)

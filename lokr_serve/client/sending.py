"""Sends one upload over either kind of channel, as often as it breaks off."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

import grpc

from lokr_serve.client.channel import deadline
from lokr_serve.client.errors import ClientError, client_errors, unavailable
from lokr_serve.client.requests import Metadata
from lokr_serve.client.uploads import Attempts, Progress, UploadFile, offset_of
from lokr_serve.types import UploadOptions
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest, UploadAdapterResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """What to send, and until when."""

    file: UploadFile
    adapter_id: str
    options: UploadOptions
    progress: Progress
    metadata: Callable[[], Metadata]  # of an attempt
    until: float  # monotonic

    @property
    def remaining_seconds(self) -> float:
        """What is left of the time."""
        return max(self.until - monotonic(), 0.0)

    @property
    def timeout(self) -> float | None:
        """The same, as grpc is told."""
        return deadline(self.remaining_seconds)

    def header(self) -> UploadAdapterRequest:
        """Return the first frame."""
        return self.file.header(self.adapter_id, self.options)


def send(method: Any, sending: Sending) -> UploadAdapterResponse:
    """Send over a blocking channel; ``method`` is of a generated stub, which has no types."""
    attempts = Attempts()
    while True:
        try:
            with client_errors():
                return _send_once(method, sending, attempts)
        except ClientError as error:
            sleep(attempts.wait_seconds(error, sending.remaining_seconds))


def _send_once(method: Any, sending: Sending, attempts: Attempts) -> UploadAdapterResponse:
    header = sending.header()
    offset: Future[int | None] = Future()
    failures: list[Exception] = []

    def frames() -> Iterator[UploadAdapterRequest]:
        yield header
        try:
            yield from sending.file.chunks(offset.result(), sending.progress)
        except Exception as error:  # noqa: BLE001 - on a thread of grpc's, which would tell no cause
            failures.append(error)
            call.cancel()

    call = method.future(frames(), timeout=sending.timeout, metadata=sending.metadata())
    try:
        attempts.offset = offset_of(call.initial_metadata())
        offset.set_result(attempts.offset)
        reply: UploadAdapterResponse = call.result()
    except (grpc.RpcError, grpc.FutureCancelledError):
        if failures:
            raise failures[0] from None
        raise
    finally:
        call.cancel()
        offset.cancel()
    return reply


async def send_async(method: Any, sending: Sending) -> UploadAdapterResponse:
    """Send over a channel of an event loop."""
    attempts = Attempts()
    while True:
        try:
            with client_errors():
                return await _send_once_async(method, sending, attempts)
        except ClientError as error:
            await asyncio.sleep(attempts.wait_seconds(error, sending.remaining_seconds))


async def _send_once_async(
    method: Any, sending: Sending, attempts: Attempts
) -> UploadAdapterResponse:
    call = method(timeout=sending.timeout, metadata=sending.metadata())
    try:
        await _write_all(call, sending, attempts)
        reply: UploadAdapterResponse = await call
        return reply
    finally:
        call.cancel()


async def _write_all(call: Any, sending: Sending, attempts: Attempts) -> None:
    """Write the frames, or as many as the server takes before it ends the call."""
    try:
        await call.write(sending.header())
        attempts.offset = offset_of(await call.initial_metadata())
        chunks = sending.file.chunks(attempts.offset, sending.progress)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            await call.write(chunk)
        await call.done_writing()
    except asyncio.InvalidStateError:  # it has ended, and its status says why
        return
    except (grpc.aio.AioRpcError, grpc.aio.InternalError) as error:
        if isinstance(error, grpc.aio.AioRpcError) and not _is_of_grpc(error):
            raise
        # To grpc a write to a call that has just ended is an error of its own; with that it
        # loses the status, which another attempt will meet again.
        raise unavailable("the server ended the call while the file was sent") from error


def _is_of_grpc(error: grpc.aio.AioRpcError) -> bool:
    """Whether an error is of grpc's own making, and no status that came over the network."""
    return error.code() is grpc.StatusCode.INTERNAL and not error.trailing_metadata()

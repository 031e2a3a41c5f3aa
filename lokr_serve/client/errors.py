"""The errors of the client library: one class for each gRPC code that a caller may act on."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from lokr_core import LokrError

DETAILS_TRAILER = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is known of a call that failed."""

    code: grpc.StatusCode
    message: str
    reason: str  # the server's stable word for it, such as ADAPTER_NOT_FOUND; empty if none
    field: str | None  # path of the request's field at fault
    retry_seconds: float | None  # when to try again
    metadata: Mapping[str, str]  # facts, such as the adapter_id


class ClientError(LokrError):
    """A call failed; the subclass says with which code."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.code = failure.code
        self.reason = failure.reason
        self.field = failure.field
        self.retry_seconds = failure.retry_seconds
        self.metadata = failure.metadata


class InvalidArgumentError(ClientError):
    """A field of the request can never be right; ``field`` is its path."""


class NotFoundError(ClientError):
    """The adapter is not registered."""


class AlreadyExistsError(ClientError):
    """The id is loaded with other content already."""


class FailedPreconditionError(ClientError):
    """The adapter, or the server's state, does not allow it."""


class ResourceExhaustedError(ClientError):
    """The queue is full, or a budget of bytes is."""


class PermissionDeniedError(ClientError):
    """The call belongs to the admin listener, or is not for this caller."""


class UnauthenticatedError(ClientError):
    """The server wants credentials, and those that came are none that it knows."""


class AbortedError(ClientError):
    """The request was ended, because its adapter was unloaded by force."""


class UnavailableError(ClientError):
    """The server cannot be reached, is not ready, or shuts down; or the adapter drains."""


class DeadlineExceededError(ClientError):
    """The call took longer than its timeout."""


class CallCancelledError(ClientError):
    """The call was cancelled."""


class UnimplementedError(ClientError):
    """The server does not have this method."""


class DataLossError(ClientError):
    """The content of a file, or of an image that came, is not what was announced."""


class InternalError(ClientError):
    """The server failed; its log has the cause."""


_CLASSES = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
        grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
        grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
        grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
        grpc.StatusCode.ABORTED: AbortedError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
        grpc.StatusCode.CANCELLED: CallCancelledError,
        grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
        grpc.StatusCode.DATA_LOSS: DataLossError,
        grpc.StatusCode.INTERNAL: InternalError,
        grpc.StatusCode.UNKNOWN: InternalError,
    }
)


@contextmanager
def client_errors() -> Iterator[None]:
    """Raise what grpc raises in the block as one of ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise client_error(error) from error


def client_error(error: grpc.RpcError) -> ClientError:
    """Return the error of a call, made on either kind of channel, as one of ours."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    trailers = error.trailing_metadata() or ()
    failure = _failure(error.code(), error.details() or "", trailers)
    return _CLASSES.get(failure.code, ClientError)(failure)


def data_loss(message: str) -> DataLossError:
    """Return the error of a reply that came damaged, or in part."""
    return DataLossError(_own_failure(grpc.StatusCode.DATA_LOSS, message))


def unavailable(message: str) -> UnavailableError:
    """Return the error of a call that ended in a way that the transport does not tell."""
    return UnavailableError(_own_failure(grpc.StatusCode.UNAVAILABLE, message))


def _own_failure(code: grpc.StatusCode, message: str) -> Failure:
    return Failure(
        code=code, message=message, reason="", field=None, retry_seconds=None, metadata={}
    )


def _failure(
    code: grpc.StatusCode, message: str, trailers: Iterable[tuple[str, str | bytes]]
) -> Failure:
    info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in _status(trailers).details:
        for kind in (info, request, retry):
            detail.Unpack(kind)  # does nothing if it is of another kind
    fields = [violation.field for violation in request.field_violations]
    has_retry = retry.HasField("retry_delay")
    return Failure(
        code=code,
        message=message,
        reason=info.reason,
        field=fields[0] if fields else None,
        retry_seconds=retry.retry_delay.ToMilliseconds() / 1000 if has_retry else None,
        metadata=dict(info.metadata),
    )


def _status(trailers: Iterable[tuple[str, str | bytes]]) -> Status:
    for key, value in trailers:
        if key == DETAILS_TRAILER and isinstance(value, bytes):
            return Status.FromString(value)
    return Status()

"""Which gRPC status each error becomes: one row for each class, and a test that none is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    RetryInfo,
)
from google.rpc.status_pb2 import Status

import lokr_core
from lokr_core import LokrError
from lokr_serve import errors

ERROR_DOMAIN = "lokr_serve"
DETAILS_TRAILER = "grpc-status-details-bin"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"

# Trailers hold the message up to three times and must stay below the 8 KiB that peers accept.
MAX_MESSAGE_BYTES = 600  # a client takes 8 KiB of metadata, where a byte may become three
MAX_FACT_BYTES = 200

Trailers = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """How errors of one class are told to clients."""

    code: grpc.StatusCode
    reason: str  # stable; clients branch on it


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorStatus:
    """The final status of a call that failed."""

    code: grpc.StatusCode
    message: str
    trailers: Trailers


def _rules(*rows: tuple[type[LokrError], str, str]) -> Mapping[type[LokrError], ErrorRule]:
    return MappingProxyType(
        {kind: ErrorRule(code=grpc.StatusCode[code], reason=reason) for kind, code, reason in rows}
    )


ERROR_RULES = _rules(
    # What the caller's request says.
    (errors.InvalidRequestError, "INVALID_ARGUMENT", "INVALID_REQUEST"),
    (lokr_core.MixError, "INVALID_ARGUMENT", "MIX"),
    (errors.SourceError, "INVALID_ARGUMENT", "SOURCE"),
    (errors.UploadError, "INVALID_ARGUMENT", "UPLOAD"),
    (errors.UnauthenticatedError, "UNAUTHENTICATED", "UNAUTHENTICATED"),
    (errors.NotPermittedError, "PERMISSION_DENIED", "NOT_PERMITTED"),
    (errors.NotServedError, "UNIMPLEMENTED", "NOT_SERVED"),
    (errors.DeadlineError, "DEADLINE_EXCEEDED", "DEADLINE"),
    # The life of an adapter.
    (errors.AdapterNotFoundError, "NOT_FOUND", "ADAPTER_NOT_FOUND"),
    (errors.AdapterExistsError, "ALREADY_EXISTS", "ADAPTER_EXISTS"),
    (errors.AdapterDrainingError, "UNAVAILABLE", "ADAPTER_DRAINING"),
    (errors.AdapterBusyError, "FAILED_PRECONDITION", "ADAPTER_BUSY"),
    (errors.AdapterDeclaredError, "FAILED_PRECONDITION", "ADAPTER_DECLARED"),
    (lokr_core.AdapterInUseError, "FAILED_PRECONDITION", "ADAPTER_IN_USE"),
    (errors.AdapterUnloadedError, "ABORTED", "ADAPTER_UNLOADED"),
    (errors.AdapterLoadFailedError, "FAILED_PRECONDITION", "ADAPTER_LOAD_FAILED"),
    (errors.AdapterBudgetError, "RESOURCE_EXHAUSTED", "ADAPTER_BUDGET"),
    (errors.SourceUnavailableError, "UNAVAILABLE", "SOURCE_UNAVAILABLE"),
    (errors.UploadBusyError, "ABORTED", "UPLOAD_BUSY"),
    (errors.StorageFullError, "RESOURCE_EXHAUSTED", "STORAGE_FULL"),
    # The adapter's files, and the base model that they were made for.
    (errors.DigestMismatchError, "DATA_LOSS", "DIGEST_MISMATCH"),
    (lokr_core.AdapterError, "FAILED_PRECONDITION", "ADAPTER"),
    (lokr_core.AdapterFileError, "FAILED_PRECONDITION", "ADAPTER_FILE"),
    (lokr_core.AdapterConfigError, "FAILED_PRECONDITION", "ADAPTER_CONFIG"),
    (lokr_core.AdapterTensorError, "FAILED_PRECONDITION", "ADAPTER_TENSOR"),
    (lokr_core.AdapterMismatchError, "FAILED_PRECONDITION", "ADAPTER_MISMATCH"),
    (lokr_core.UnmatchedKeysError, "FAILED_PRECONDITION", "UNMATCHED_KEYS"),
    (lokr_core.UnsupportedModuleError, "FAILED_PRECONDITION", "UNSUPPORTED_MODULE"),
    (lokr_core.ShapeError, "FAILED_PRECONDITION", "SHAPE"),
    # Merging.
    (lokr_core.MergeError, "FAILED_PRECONDITION", "MERGE"),
    (lokr_core.LossyMergeError, "FAILED_PRECONDITION", "LOSSY_MERGE"),
    (lokr_core.MergeBudgetError, "RESOURCE_EXHAUSTED", "MERGE_BUDGET"),
    # What the model makes of a request.
    (errors.NotFiniteError, "FAILED_PRECONDITION", "NOT_FINITE"),
    # The state of the server.
    (errors.DeviceMemoryError, "RESOURCE_EXHAUSTED", "DEVICE_MEMORY"),
    (errors.QueueFullError, "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    (errors.LimitExceededError, "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
    (errors.ShuttingDownError, "UNAVAILABLE", "SHUTTING_DOWN"),
    (errors.EngineStoppedError, "UNAVAILABLE", "ENGINE_STOPPED"),
    (errors.GenerationFailedError, "INTERNAL", "GENERATION_FAILED"),
    (errors.NumericsError, "INTERNAL", "NUMERICS"),
    (errors.SettingsError, "INTERNAL", "SETTINGS"),
    (errors.ModelError, "INTERNAL", "MODEL"),
    (errors.ManifestError, "INTERNAL", "MANIFEST"),
    # Bugs of ours.
    (errors.AdapterLoadCrashedError, "INTERNAL", "ADAPTER_LOAD_CRASHED"),
    (lokr_core.AdapterNotAddedError, "INTERNAL", "ADAPTER_NOT_ADDED"),
    (lokr_core.RoutingError, "INTERNAL", "ROUTING"),
)


RETRIED_ERRORS = (
    errors.QueueFullError,
    errors.LimitExceededError,
    errors.AdapterLoadFailedError,
    errors.SourceUnavailableError,
)

# Of the server's own affairs, such as where its model lies: clients get an id, the log the text.
PRIVATE_ERRORS = (
    errors.SettingsError,
    errors.ModelError,
    errors.ManifestError,
    lokr_core.AdapterNotAddedError,
    lokr_core.RoutingError,
)


def error_rule(error: LokrError) -> ErrorRule:
    """Return the row of the error's class."""
    return ERROR_RULES[type(error)]


def error_status(error: LokrError) -> ErrorStatus:
    """Return the status of a call that ended with ``error``."""
    rule = error_rule(error)
    message = _shorten(str(error), MAX_MESSAGE_BYTES)
    info = ErrorInfo(reason=rule.reason, domain=ERROR_DOMAIN, metadata=_facts(error))
    retry_seconds = _retry_seconds(error)
    pushback: Trailers = ()
    if retry_seconds is not None:
        pushback = ((PUSHBACK_TRAILER, str(round(retry_seconds * 1000))),)
    details = (info, *_details(error, rule, message))
    return ErrorStatus(
        code=rule.code,
        message=message,
        trailers=((DETAILS_TRAILER, _packed(rule.code, message, details)), *pushback),
    )


def internal_status(error_id: str) -> ErrorStatus:
    """Return the status of a call that ended with a bug; only the log says more."""
    code = grpc.StatusCode.INTERNAL
    message = f"internal error {error_id}; the server's log has the cause"
    info = ErrorInfo(reason="INTERNAL", domain=ERROR_DOMAIN, metadata={"error_id": error_id})
    return ErrorStatus(
        code=code,
        message=message,
        trailers=((DETAILS_TRAILER, _packed(code, message, (info,))),),
    )


def _packed(code: grpc.StatusCode, message: str, details: Sequence[Message]) -> bytes:
    number: int = code.value[0]
    status = Status(code=number, message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    packed_status: bytes = status.SerializeToString()
    return packed_status


def _facts(error: LokrError) -> dict[str, str]:
    """Return what the error knows, as text: an error's attributes are its facts."""
    known = {name: value for name, value in vars(error).items() if value is not None}
    return {name: _shorten(_text(value), MAX_FACT_BYTES) for name, value in known.items()}


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _shorten(text: str, max_bytes: int) -> str:
    """Cut a text to a size, between characters."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return f"{encoded[: max_bytes - len('…'.encode())].decode('utf-8', 'ignore')}…"


def _details(error: LokrError, rule: ErrorRule, message: str) -> Iterator[Message]:
    if (field := _field(error)) is not None:
        problem = message
        if isinstance(error, errors.InvalidRequestError):
            problem = _shorten(error.problem, MAX_MESSAGE_BYTES)
        path = _shorten(field, MAX_FACT_BYTES)
        violation = BadRequest.FieldViolation(field=path, description=problem)
        yield BadRequest(field_violations=[violation])
    if rule.code is grpc.StatusCode.FAILED_PRECONDITION:
        unmet = PreconditionFailure.Violation(
            type=rule.reason, subject=_subject(error), description=message
        )
        yield PreconditionFailure(violations=[unmet])
    if rule.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        quota = QuotaFailure.Violation(subject=_subject(error), description=message)
        yield QuotaFailure(violations=[quota])
    if (retry_seconds := _retry_seconds(error)) is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_seconds * 1000))
        yield retry


def _field(error: LokrError) -> str | None:
    """Return the path of the request's field that is at fault."""
    match error:
        case errors.InvalidRequestError() | lokr_core.MixError():
            return error.field
        case errors.SourceError() | errors.SourceUnavailableError():
            return "source"
        case errors.DigestMismatchError():
            return "digest"
        case _:
            return None


def _subject(error: LokrError) -> str:
    """Return what is at fault: the adapter, or a part of its file."""
    match error:
        case lokr_core.AdapterTensorError():
            subject = error.tensor
        case lokr_core.UnmatchedKeysError():
            subject = error.keys[0]
        case lokr_core.AdapterMismatchError() | lokr_core.UnsupportedModuleError():
            subject = error.module
        case lokr_core.AdapterConfigError():
            subject = error.field
        case (
            errors.AdapterBusyError()
            | errors.AdapterDeclaredError()
            | errors.AdapterLoadFailedError()
        ):
            subject = error.adapter_id
        case (
            errors.AdapterBudgetError()
            | errors.DeviceMemoryError()
            | errors.StorageFullError()
            | errors.LimitExceededError()
        ):
            subject = error.subject
        case errors.QueueFullError():
            subject = "queue"
        case _:
            subject = ""
    return _shorten(subject, MAX_FACT_BYTES)


def _retry_seconds(error: LokrError) -> float | None:
    return error.retry_seconds if isinstance(error, RETRIED_ERRORS) else None

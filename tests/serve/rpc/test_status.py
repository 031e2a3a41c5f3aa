"""The table of errors."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc.error_details_pb2 import (
    BadRequest,
    ErrorInfo,
    PreconditionFailure,
    QuotaFailure,
    RetryInfo,
)

import lokr_core.errors
import lokr_serve.errors
from lokr_core import (
    AdapterConfigError,
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
    LokrError,
    MixError,
    UnmatchedKeysError,
    UnsupportedModuleError,
)
from lokr_serve.adapters.record import failure_of
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterBusyError,
    AdapterLoadFailedError,
    AdapterNotFoundError,
    DeviceMemoryError,
    DigestMismatchError,
    InvalidRequestError,
    LimitExceededError,
    QueueFullError,
    SourceError,
)
from lokr_serve.rpc.status import (
    ERROR_DOMAIN,
    ERROR_RULES,
    PUSHBACK_TRAILER,
    error_status,
    internal_status,
)
from tests.serve.rpc.details import read_detail, read_status

MAX_TRAILER_BYTES = 8 * 1024  # what peers accept by default


def error_classes(kind: type[LokrError] = LokrError) -> Iterator[type[LokrError]]:
    """Return every class that the two packages define below LokrError."""
    for subclass in kind.__subclasses__():
        if subclass.__module__ in (lokr_core.errors.__name__, lokr_serve.errors.__name__):
            yield subclass
            yield from error_classes(subclass)


def test_every_error_class_has_a_row() -> None:
    """A class without a row would reach clients as a bug of ours."""
    assert set(ERROR_RULES) == set(error_classes())


def test_reasons_are_those_of_failed_adapters() -> None:
    """A client that branches on a reason must not care where it read it."""
    assert {kind: rule.reason for kind, rule in ERROR_RULES.items()} == {
        kind: failure_of(kind.__new__(kind)).reason for kind in ERROR_RULES
    }


def test_every_status_names_its_reason_and_the_facts() -> None:
    """Clients find the adapter without parsing a sentence."""
    status = error_status(AdapterNotFoundError("poet"))
    info = read_detail(status.trailers, ErrorInfo)

    assert status.code is grpc.StatusCode.NOT_FOUND
    assert (info.domain, info.reason) == (ERROR_DOMAIN, "ADAPTER_NOT_FOUND")
    assert dict(info.metadata) == {"adapter_id": "poet"}


def test_details_repeat_the_code_and_the_message() -> None:
    """Libraries that decode details refuse them when they say something else."""
    status = error_status(AdapterNotFoundError("poet"))
    rich = read_status(status.trailers)

    assert (rich.code, rich.message) == (status.code.value[0], status.message)


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (InvalidRequestError("sampling.top_p", "must be positive"), "sampling.top_p"),
        (MixError("adapters", "too many"), "adapters"),
        (SourceError("../x", "is outside"), "source"),
        (DigestMismatchError("x", expected="a", found="b"), "digest"),
    ],
)
def test_errors_of_a_field_name_its_path(error: LokrError, field: str) -> None:
    """A form can show the problem beside the input that caused it."""
    (violation,) = read_detail(error_status(error).trailers, BadRequest).field_violations

    assert violation.field == field


def test_the_path_of_a_field_is_bounded() -> None:
    """It may have a pattern of the caller's, and a client takes no trailers of any size."""
    error = InvalidRequestError(f"adapters[0].module_weights['{'x' * 20_000}']", "is not finite")
    status = error_status(error)
    (violation,) = read_detail(status.trailers, BadRequest).field_violations

    assert violation.field.startswith("adapters[0].module_weights['x")
    assert sum(len(key) + len(value) for key, value in status.trailers) < 8192


@pytest.mark.parametrize(
    ("error", "subject"),
    [
        (AdapterTensorError("w1", "is not finite"), "w1"),
        (UnmatchedKeysError(["a.w1", "b.w1"]), "a.w1"),
        (AdapterMismatchError("q_proj", found=[2, 2], expected=[4, 4]), "q_proj"),
        (UnsupportedModuleError("experts", "is stacked"), "experts"),
        (AdapterConfigError("alpha", "is no number"), "alpha"),
        (AdapterBusyError("poet", 3), "poet"),
        (AdapterLoadFailedError("poet", "is broken", 2.0), "poet"),
        (AdapterFileError("x: truncated"), ""),
    ],
)
def test_unmet_preconditions_name_their_subject(error: LokrError, subject: str) -> None:
    """What is wrong with a file is told by tensor, module or field."""
    status = error_status(error)
    (violation,) = read_detail(status.trailers, PreconditionFailure).violations

    assert status.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (violation.subject, violation.description) == (subject, status.message)


@pytest.mark.parametrize(
    ("error", "subject"),
    [
        (QueueFullError("full", 1.0), "queue"),
        (AdapterBudgetError("poet", needed_bytes=9, budget_bytes=8, tier="device"), "poet"),
        (DeviceMemoryError("poet", remedy="unload others"), "poet"),
    ],
)
def test_exhausted_budgets_name_their_subject(error: LokrError, subject: str) -> None:
    """An operator sees which budget to raise."""
    status = error_status(error)
    (violation,) = read_detail(status.trailers, QuotaFailure).violations

    assert status.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert violation.subject == subject


def test_a_full_queue_says_when_to_come_again() -> None:
    """Clients and gateways that honour push-back spread their retries."""
    status = error_status(QueueFullError("4 requests wait already", 1.5))
    retry = read_detail(status.trailers, RetryInfo)

    assert retry.retry_delay.ToMilliseconds() == 1500
    assert dict(status.trailers)[PUSHBACK_TRAILER] == "1500"


def test_a_limit_that_time_alone_does_not_lift_names_no_time() -> None:
    """A client that waited would come back in vain."""
    status = error_status(LimitExceededError("client 'a'", "has all that it may have"))

    assert PUSHBACK_TRAILER not in dict(status.trailers)
    assert "retry_seconds" not in read_detail(status.trailers, ErrorInfo).metadata
    with pytest.raises(AssertionError, match="no RetryInfo"):
        read_detail(status.trailers, RetryInfo)


def test_a_bug_shows_its_id_alone() -> None:
    """What an exception says may hold paths and secrets; the log keeps it."""
    status = internal_status("1f2e")

    assert status.code is grpc.StatusCode.INTERNAL
    assert "1f2e" in status.message
    assert read_detail(status.trailers, ErrorInfo).metadata["error_id"] == "1f2e"


def test_trailers_stay_small_whatever_the_message() -> None:
    """Trailers beyond what the peer accepts would replace the status by another one."""
    status = error_status(UnmatchedKeysError(["ж" * 5000] * 7))
    num_bytes = sum(len(value) * 4 // 3 for _, value in status.trailers)
    num_bytes += 3 * len(status.message.encode())  # percent-encoded

    assert num_bytes < MAX_TRAILER_BYTES


def test_a_long_text_of_any_script_fits_the_trailers() -> None:
    """A client refuses metadata of more than 8 KiB and would never learn what was wrong."""
    status = error_status(InvalidRequestError("messages", "\N{PILE OF POO}" * 5000))

    num_bytes = sum(len(key) + 4 * len(value) / 3 for key, value in status.trailers)

    assert num_bytes + 3 * len(status.message.encode()) < 8192

"""Record: what the registry knows of one registered id."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from lokr_core import Adapter, AdapterError, AdapterInfo
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import (
    AdapterLoadCrashedError,
    AdapterLoadFailedError,
    DigestMismatchError,
    SourceError,
)
from lokr_serve.types import AdapterFailure, AdapterState, AdapterStatus, LoadSpec, ScaleReport

# What would be wrong the next time as well; want of room passes.
LOAD_ERRORS = (AdapterError, AdapterLoadCrashedError, DigestMismatchError, SourceError)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVersion:
    """What the last load of an id found; outlives the adapter's stay in memory."""

    version: str
    num_modules: int
    num_bytes: int
    info: AdapterInfo

    @classmethod
    def of(cls, adapter: Adapter) -> "KnownVersion":
        """Return what is worth knowing of an adapter without its factors."""
        return cls(
            version=adapter.ref.version,
            num_modules=len(adapter.layout.modules),
            num_bytes=adapter.num_bytes,
            info=adapter.info,
        )


NEVER_LOADED = KnownVersion(
    version="",
    num_modules=0,
    num_bytes=0,
    info=AdapterInfo(format="", algorithms=(), digest="", num_parameters=0, scales=()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedLoad:
    """How the last load of an id failed, and when it may be tried again."""

    failure: AdapterFailure
    is_crash: bool  # by a bug of ours, not by what is wrong with the adapter
    num_failures: int  # in a row
    retry_at: float  # in the time of the event loop

    def error(
        self, adapter_id: str, now: float
    ) -> AdapterLoadFailedError | AdapterLoadCrashedError:
        """Return what a request for the id gets until it is tried again."""
        if self.is_crash:
            return AdapterLoadCrashedError(adapter_id)
        return AdapterLoadFailedError(adapter_id, self.failure.message, self.retry_at - now)


def retry_delay(settings: AdapterSettings, num_failures: int) -> float:
    """Return how many seconds to wait after so many failed loads in a row."""
    delay = settings.retry_seconds * 2.0 ** min(num_failures - 1, 32)
    return min(delay, settings.max_retry_seconds)


def failure_of(error: Exception) -> AdapterFailure:
    """Return an error without its traceback, which would keep the tensors of the failed load.

    The reason is the name of the error's class in words: ``ADAPTER_MISMATCH``.
    """
    words = re.findall("[A-Z][a-z]*", type(error).__name__.removesuffix("Error"))
    return AdapterFailure(reason="_".join(words).upper(), message=str(error))


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """One registered id; small, since there may be many thousands, and changed by the registry."""

    request: LoadRequest
    created: datetime
    idle_since: float  # in the time of the event loop; what a time to live is counted from
    ttl_seconds: float = 0.0  # 0 never expires
    last_used: datetime | None = None
    num_drains: int = 0  # by an operator and by the manifest, which may overlap
    known: KnownVersion = NEVER_LOADED
    failed: FailedLoad | None = None
    folder_request: LoadRequest | None = None  # what the adapter folder has under the id
    owner: str | None = None  # the client that loaded it; empty is one without a name
    is_declared: bool = False  # by the manifest, which alone then says what becomes of it
    refused: AdapterFailure | None = None  # why it is not yet what the manifest says

    @property
    def is_lasting(self) -> bool:
        """Whether the id stays registered when its time to live has passed."""
        return self.is_declared or self.folder_request is not None

    @property
    def is_draining(self) -> bool:
        """Whether the id takes no requests, since it is about to leave."""
        return self.num_drains > 0

    @property
    def is_known(self) -> bool:
        """Whether the id has been loaded, be it in memory still or not."""
        return bool(self.known.version)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Refuse requests while the block waits for those that run.

        When the last such block has ended, the id serves again.
        """
        self.num_drains += 1
        try:
            yield
        finally:
            self.num_drains -= 1

    def require_retry(self, now: float) -> None:
        """Check that the id may be loaded now.

        Raises:
            AdapterLoadFailedError, AdapterLoadCrashedError: Its last load failed, and it is too
                early for another.
        """
        if self.failed is not None and now < self.failed.retry_at:
            raise self.failed.error(self.request.adapter_id, now)

    def note_failure(
        self, error: Exception, *, now: float, settings: AdapterSettings
    ) -> AdapterLoadFailedError | AdapterLoadCrashedError:
        """Note that the id cannot be loaded, once for all who waited, and return what they get."""
        if self.failed is None or self.failed.retry_at <= now:
            num_failures = 1 if self.failed is None else self.failed.num_failures + 1
            self.failed = FailedLoad(
                failure=failure_of(error),
                is_crash=isinstance(error, AdapterLoadCrashedError),
                num_failures=num_failures,
                retry_at=now + retry_delay(settings, num_failures),
            )
        return self.failed.error(self.request.adapter_id, now)

    def has_content(self, request: LoadRequest, adapter: Adapter, *, is_resident: bool) -> bool:
        """Whether what a request loaded is what the id stands for already.

        An id that is not in memory stands for whatever its source holds now, unless a digest
        says what that must be.
        """
        if self.known.version == adapter.ref.version:
            return True
        is_same_source = (self.request.source, self.request.overrides) == (
            request.source,
            request.overrides,
        )
        is_open = self.request.digest is None or self.request.digest.lower() == adapter.info.digest
        return is_same_source and is_open and not is_resident

    def is_as_wanted(self, spec: LoadSpec, version: str, *, is_pinned: bool) -> bool:
        """Whether a request to load the id, which found a version, would change nothing."""
        return (
            self.known.version == version
            and (is_pinned or not spec.pinned)
            and spec.ttl_seconds in (None, self.ttl_seconds)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BegunLoad:
    """A load of a registered id that is under way."""

    record: Record
    request: LoadRequest
    call: asyncio.Future[Adapter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an id takes and does at the moment."""

    state: AdapterState
    pinned: bool
    device_bytes: int
    host_bytes: int
    in_flight: int
    aliases: Sequence[str]


def describe(record: Record, usage: Usage) -> AdapterStatus:
    """Return a registered id as an operator sees it."""
    info, is_failed = record.known.info, usage.state is AdapterState.FAILED
    return AdapterStatus(
        adapter_id=record.request.adapter_id,
        version=record.known.version,
        digest=info.digest,
        state=usage.state,
        source=record.request.source,
        format=info.format,
        algorithms=info.algorithms,
        num_modules=record.known.num_modules,
        num_parameters=info.num_parameters,
        device_bytes=usage.device_bytes,
        host_bytes=usage.host_bytes,
        scales=[ScaleReport(source=s.source, num_modules=s.num_modules) for s in info.scales],
        in_flight=usage.in_flight,
        pinned=usage.pinned,
        created=record.created,
        last_used=record.last_used,
        warnings=info.warnings if is_failed else (*info.warnings, *_refusal(record)),
        ttl_seconds=record.ttl_seconds,
        aliases=usage.aliases,
        is_declared=record.is_declared,
        error=record.failed.failure if record.failed and is_failed else None,
    )


def _refusal(record: Record) -> Sequence[str]:
    """Say why an id is not yet what the manifest declares."""
    if record.refused is None:
        return ()
    return (f"not yet as the manifest declares it: {record.refused.message}",)

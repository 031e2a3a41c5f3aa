"""What operators ask of adapters, and what they are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class AdapterState(Enum):
    """Where a registered adapter is in its life."""

    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOverrides:
    """What a caller says in place of the file."""

    partial: bool = False
    scale_override: float | None = None
    alpha: float | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """One checked request to register and load an adapter."""

    adapter_id: str
    source: str  # path inside the adapter folder, or a URI
    replace: bool = False
    pinned: bool = False
    ttl_seconds: float | None = None  # None or 0 never expires
    digest: str | None = None  # hex SHA-256 that the tensor file must have
    overrides: AdapterOverrides = AdapterOverrides()
    owner: str = ""  # the client whose adapters' bytes it counts among; empty is nobody's
    max_owner_bytes: int | None = None  # of all of them; None is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How an uploaded file is to be registered."""

    replace: bool = False
    pinned: bool = False
    ttl_seconds: float | None = None  # None or 0 never expires
    overrides: AdapterOverrides = AdapterOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleReport:
    """Where the scale of some modules came from."""

    source: str
    num_modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFailure:
    """Why an adapter could not be loaded."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatus:
    """A registered adapter as an operator sees it."""

    adapter_id: str
    version: str
    digest: str
    state: AdapterState
    source: str
    format: str
    algorithms: Sequence[str]
    num_modules: int
    num_parameters: int
    device_bytes: int
    host_bytes: int
    scales: Sequence[ScaleReport]
    in_flight: int
    pinned: bool
    created: datetime
    last_used: datetime | None
    warnings: Sequence[str] = ()
    error: AdapterFailure | None = None
    aliases: Sequence[str] = ()
    is_declared: bool = False
    ttl_seconds: float = 0.0  # 0 never expires

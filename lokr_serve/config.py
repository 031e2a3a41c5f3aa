"""The settings: one frozen tree, read from flags, environment and a TOML file at start."""

import os
import tomllib
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lokr_serve.errors import SettingsError
from lokr_serve.problems import problems_of

ENVIRONMENT_PREFIX = "LOKR_SERVE__"
MIB = 1024 * 1024
MAX_CORE_INT = 2**31 - 1  # what gRPC's core holds its limits in

_WORDS = MappingProxyType(
    {
        # The folder of the model is all that has no default.
        "missing": "is required; give it by --model, LOKR_SERVE__MODEL__PATH or the settings file",
        "extra_forbidden": (
            "is no setting; `lokr-serve config show --model DIR` lists those that are"
        ),
    }
)


def _require_some(path: object) -> object:
    """Refuse an empty path, which would mean the folder that the server is started in."""
    if path == "":
        raise ValueError("is empty; give a path, or leave the setting out")
    return path


NamedPath = Annotated[Path, BeforeValidator(_require_some)]
Positive = Annotated[int, Field(gt=0)]
CoreLimit = Annotated[int, Field(gt=0, le=MAX_CORE_INT)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
CoreSeconds = Annotated[float, Field(ge=0.001, le=MAX_CORE_INT / 1000)]  # held in milliseconds
Share = Annotated[float, Field(gt=0, le=1)]
AccessLog = Literal["off", "failures", "all"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """A part of the tree: frozen; an unknown key is an error, as is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(_Section):
    """The base model."""

    path: NamedPath
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    num_threads: int | None = Field(default=None, gt=0)  # intra-op threads of the engine


class ServerSettings(_Section):
    """Listeners and their limits; port 0 picks a free port."""

    listen: str = "127.0.0.1:50051"
    admin_listen: str = "127.0.0.1:50052"
    metrics_listen: str = "127.0.0.1:9090"
    max_receive_bytes: CoreLimit = 16 * MIB
    max_send_bytes: CoreLimit = 32 * MIB
    reflection: bool | None = None  # on, unless callers need credentials
    early_listen: bool = True  # for inference while the model loads, to say that it does
    lame_duck_seconds: Seconds = 0.0  # after SIGTERM: not ready any more, but still serving
    drain_seconds: Seconds = 30.0
    max_connection_seconds: CoreSeconds | None = None  # then clients reconnect
    max_connections: CoreLimit = 1024  # of one listener
    max_streams: CoreLimit = 2048  # calls at the same time on one connection
    max_adapter_series: Positive = 100
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: AccessLog = "failures"  # which calls have a line in the log at their end

    @field_validator("listen", "admin_listen", "metrics_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not (host and separator and port.isdecimal() and int(port) < 65536):
            raise ValueError(f"must be HOST:PORT, not {value!r}")
        return value


class SecuritySettings(_Section):
    """Who may call; with none of it set, everyone may."""

    clients: NamedPath | None = None  # TOML file of clients: tokens, scopes, adapters, limits
    certificate: NamedPath | None = None  # PEM chain of both gRPC listeners
    private_key: NamedPath | None = None
    client_ca: NamedPath | None = None  # PEM; callers must then have a certificate of it
    reload_seconds: PositiveSeconds = 5.0  # between two looks at these files

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and private_key")
        return self

    @property
    def has_credentials(self) -> bool:
        """Whether callers must say who they are."""
        return self.clients is not None or self.client_ca is not None


class LimitSettings(_Section):
    """What one client, or one adapter, may take; the file of clients may say otherwise for some."""

    client_requests: Positive | None = None  # at the same time
    client_rate: Rate | None = None  # requests a second, in bursts of up to as many
    client_queue_share: Share = 1.0  # of the places in the queue
    client_adapter_bytes: Positive | None = None  # of the adapters that it loaded or uploaded
    adapter_requests: Positive | None = None
    adapter_rate: Rate | None = None
    adapter_queue_share: Share = 1.0


class AdapterSettings(_Section):
    """Where adapters come from and how many bytes they may take."""

    directory: NamedPath | None = None
    manifest: NamedPath | None = None  # YAML file of the adapters that this replica must hold
    manifest_seconds: PositiveSeconds = 5.0  # between two looks at it
    uploads: NamedPath | None = None  # folder that uploads are kept in; none are taken without it
    upload_bytes: Positive = 8192 * MIB  # of all uploaded files, parts of some included
    hub: NamedPath | None = None  # folder of Hugging Face's hub cache layout, for hf:// sources
    remote: tuple[str, ...] = ()  # URIs that sources may start with, such as s3://bucket/adapters/
    fetched: NamedPath | None = None  # folder for files from there
    fetched_bytes: Positive = 8192 * MIB
    fetch_seconds: PositiveSeconds = 60.0  # for one adapter to come from there
    max_fetches: Positive = 4  # at the same time
    max_file_bytes: Positive = 4096 * MIB  # of one adapter, told before it is read
    idle_seconds: Seconds = 0.0  # after its last use an adapter leaves memory; 0 is never
    device_bytes: Bytes = 4096 * MIB
    host_bytes: Bytes = 8192 * MIB
    merge_cache_bytes: Bytes = 2048 * MIB
    bank_bytes: Bytes = 1024 * MIB  # active adapters' factors side by side
    max_parts: Positive = 8
    max_loads: Positive = 4  # loads at the same time
    load_share: Share = 0.25  # of the time while requests are served, for short loads
    allow_lossy_merge: bool = False  # for requests for merged; auto stays unmerged
    max_rounding_loss: Annotated[float, Field(ge=0)] = 0.1
    retry_seconds: Seconds = 1.0  # first wait after a failed load; doubles
    max_retry_seconds: Seconds = 300.0

    @field_validator("remote", mode="before")
    @classmethod
    def _is_list(cls, value: object) -> object:
        """Part at its commas what the environment, which has no lists, gives."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_room_for_remote(self) -> Self:
        if self.remote and self.fetched is None:
            raise ValueError("remote needs fetched, a folder for copies")
        return self

    @model_validator(mode="after")
    def _keeps_its_files_apart(self) -> Self:
        """Refuse folders within each other: what one holds would be taken for the other's."""
        named = {
            "adapters.directory": self.directory,
            "adapters.uploads": self.uploads,
            "adapters.fetched": self.fetched,
        }
        folders = {name: path.resolve() for name, path in named.items() if path is not None}
        for (first, outer), (second, inner) in permutations(folders.items(), 2):
            if inner.is_relative_to(outer):
                raise ValueError(
                    f"{second} ({inner}) must not be {first} ({outer}), nor inside it; keep them "
                    "beside each other"
                )
        return self


class TextSettings(_Section):
    """The text engine."""

    max_rows: Positive = 64  # sequences in one step
    max_step_tokens: Positive = 512
    page_tokens: Annotated[int, Field(ge=4)] = 32  # of the key-value cache
    cache_tokens: Positive = 65536
    max_queue: Positive = 1024
    max_queue_bytes: Positive = 256 * MIB  # that requests hold while they wait
    max_prompt_tokens: Positive | None = None  # the model's own limit if unset
    stuck_step_seconds: Seconds = 120.0


class ImageSettings(_Section):
    """The image engine."""

    max_requests: Positive = 16  # that run at the same time, a thread each
    max_rows: Positive = 32  # of one forward, guidance included
    gather_seconds: Seconds = 0.05  # how long a call waits for others to join it
    max_queue: Positive = 256
    max_queue_bytes: Positive = 1024 * MIB  # that requests hold while they wait
    max_pixels: Positive = 4096 * 1024  # of one image, given or made
    max_steps: Positive = 1000
    stuck_step_seconds: Seconds = 300.0


class TracingSettings(_Section):
    """Spans for OpenTelemetry; none without an endpoint."""

    endpoint: str | None = None  # of an OTLP collector over gRPC, such as http://127.0.0.1:4317
    service_name: str = "lokr-serve"
    sample_share: Annotated[float, Field(ge=0, le=1)] = 1.0  # of requests that bring no trace


class Settings(_Section):
    """Everything that can be set."""

    model: ModelSettings
    server: ServerSettings = ServerSettings()
    security: SecuritySettings = SecuritySettings()
    limits: LimitSettings = LimitSettings()
    tracing: TracingSettings = TracingSettings()
    adapters: AdapterSettings = AdapterSettings()
    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()


def load_settings(
    flags: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Read the settings: flags first, then the environment, then a TOML file.

    Args:
        flags: Values by section and key; only those that were given.
        environment: Variables; those that start with ``LOKR_SERVE__`` are read as
            ``LOKR_SERVE__SECTION__KEY``.
        file: A TOML file with one table for each section.

    Raises:
        SettingsError: A setting is unknown or malformed.
    """
    tree: dict[str, dict[str, Any]] = {"model": {}}  # so that its path is named if it is missing
    for source in (_from_file(file), _from_environment(environment), flags):
        for section, values in source.items():
            if not isinstance(values, Mapping):
                raise SettingsError(f"{section} is not a section of settings")
            tree.setdefault(section, {}).update(values)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError("; ".join(problems_of(error, _WORDS))) from error


def _from_file(file: Path | None) -> Mapping[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {file}: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    tree: dict[str, dict[str, str]] = {}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if not separator or not key:
            raise SettingsError(f"{name} is not of the form {ENVIRONMENT_PREFIX}SECTION__KEY")
        tree.setdefault(section, {})[key] = value
    return tree

"""The settings: one frozen tree, read from flags, environment and a TOML file at start."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lokr_serve.errors import SettingsError

ENVIRONMENT_PREFIX = "LOKR_SERVE__"
MIB = 1024 * 1024

Positive = Annotated[int, Field(gt=0)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """A part of the tree: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Section):
    """The base model."""

    path: Path
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto"
    num_threads: int | None = Field(default=None, gt=0)  # intra-op threads of the engine


class ServerSettings(_Section):
    """Listeners and their limits; port 0 picks a free port."""

    listen: str = "127.0.0.1:50051"
    admin_listen: str = "127.0.0.1:50052"
    metrics_listen: str = "127.0.0.1:9090"
    max_receive_bytes: Positive = 16 * MIB
    max_send_bytes: Positive = 32 * MIB
    reflection: bool = True
    drain_seconds: Seconds = 30.0
    max_adapter_series: Positive = 100
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("listen", "admin_listen", "metrics_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not (host and separator and port.isdecimal() and int(port) < 65536):
            raise ValueError(f"must be HOST:PORT, not {value!r}")
        return value


class AdapterSettings(_Section):
    """Where adapters come from and how many bytes they may take."""

    directory: Path | None = None
    device_bytes: Bytes = 4096 * MIB
    host_bytes: Bytes = 8192 * MIB
    merge_cache_bytes: Bytes = 2048 * MIB
    bank_bytes: Bytes = 1024 * MIB  # active adapters' factors side by side
    max_parts: Positive = 8
    max_loads: Positive = 4  # loads at the same time
    load_share: Annotated[float, Field(gt=0, le=1)] = 0.25  # of the time while requests are served
    allow_lossy_merge: bool = False
    max_rounding_loss: Annotated[float, Field(ge=0)] = 0.1
    retry_seconds: Seconds = 1.0  # first wait after a failed load; doubles
    max_retry_seconds: Seconds = 300.0


class TextSettings(_Section):
    """The text engine."""

    max_rows: Positive = 64  # sequences in one step
    max_step_tokens: Positive = 512
    page_tokens: Annotated[int, Field(ge=4)] = 32  # of the key-value cache
    cache_tokens: Positive = 65536
    max_queue: Positive = 1024
    max_prompt_tokens: Positive | None = None  # the model's own limit if unset
    stuck_step_seconds: Seconds = 120.0


class ImageSettings(_Section):
    """The image engine."""

    max_requests: Positive = 16  # that run at the same time, a thread each
    max_rows: Positive = 32  # of one forward, guidance included
    gather_seconds: Seconds = 0.05  # how long a call waits for others to join it
    max_queue: Positive = 256
    max_pixels: Positive = 4096 * 1024  # of one image, given or made
    max_steps: Positive = 1000
    stuck_step_seconds: Seconds = 300.0


class Settings(_Section):
    """Everything that can be set."""

    model: ModelSettings
    server: ServerSettings = ServerSettings()
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
        raise SettingsError(_describe(error)) from error


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


def _describe(error: ValidationError) -> str:
    problems = (_problem(problem["type"], problem["msg"]) for problem in error.errors())
    places = (".".join(map(str, problem["loc"])) for problem in error.errors())
    return "; ".join(f"{place}: {problem}" for place, problem in zip(places, problems, strict=True))


def _problem(kind: str, message: str) -> str:
    """Return pydantic's words for a problem, or plainer ones."""
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is no setting"
        case _:
            return message.removeprefix("Value error, ")

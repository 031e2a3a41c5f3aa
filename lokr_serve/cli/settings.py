"""The flags that set settings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from typer import Option

from lokr_serve.config import Settings, load_settings

# Flags of whichever engine runs the model; a server has one, and its settings are there for both.
_OF_THE_ENGINE = ("max_queue", "max_rows")
_ENGINES = ("text", "image")

# Where each other flag lies in the tree of settings; `config` names the file beside them.
_PLACES = MappingProxyType(
    {
        "model": ("model", "path"),
        "device": ("model", "device"),
        "dtype": ("model", "dtype"),
        "threads": ("model", "num_threads"),
        "adapter_dir": ("adapters", "directory"),
        "manifest": ("adapters", "manifest"),
        "device_bytes": ("adapters", "device_bytes"),
        "host_bytes": ("adapters", "host_bytes"),
        "merge_cache_bytes": ("adapters", "merge_cache_bytes"),
        "allow_lossy_merge": ("adapters", "allow_lossy_merge"),
        "listen": ("server", "listen"),
        "admin_listen": ("server", "admin_listen"),
        "metrics_listen": ("server", "metrics_listen"),
        "reflection": ("server", "reflection"),
        "lame_duck_seconds": ("server", "lame_duck_seconds"),
        "drain_seconds": ("server", "drain_seconds"),
        "log_level": ("server", "log_level"),
        "clients": ("security", "clients"),
        "certificate": ("security", "certificate"),
        "private_key": ("security", "private_key"),
        "client_ca": ("security", "client_ca"),
        "max_requests": ("image", "max_requests"),
        "max_pixels": ("image", "max_pixels"),
        "max_steps": ("image", "max_steps"),
        "gather_seconds": ("image", "gather_seconds"),
    }
)


@dataclass(frozen=True, kw_only=True)
class SettingsFlags:
    """Flags for what is set most often; the environment and a file can set everything."""

    model: Annotated[str | None, Option(metavar="DIR", help="Folder of the base model.")] = None
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:N or auto.")] = None
    dtype: Annotated[str | None, Option(help="Of the base weights, such as bfloat16.")] = None
    threads: Annotated[int | None, Option(help="Threads of one torch operation.")] = None
    adapter_dir: Annotated[str | None, Option(metavar="DIR", help="Folder of adapters.")] = None
    manifest: Annotated[
        str | None, Option(metavar="FILE", help="YAML file of adapters to hold, watched.")
    ] = None
    device_bytes: Annotated[int | None, Option(help="For adapters on the device.")] = None
    host_bytes: Annotated[int | None, Option(help="For adapters on the host.")] = None
    merge_cache_bytes: Annotated[int | None, Option(help="For merged weights.")] = None
    allow_lossy_merge: Annotated[
        bool | None, Option(help="Merge on request also where rounding loses much of the delta.")
    ] = None
    listen: Annotated[
        str | None, Option(metavar="HOST:PORT", help="For inference; port 0 picks a free one.")
    ] = None
    admin_listen: Annotated[
        str | None, Option(metavar="HOST:PORT", help="For calls that change adapters.")
    ] = None
    metrics_listen: Annotated[
        str | None, Option(metavar="HOST:PORT", help="For metrics and probes.")
    ] = None
    reflection: Annotated[bool | None, Option(help="Serve gRPC reflection.")] = None
    lame_duck_seconds: Annotated[
        float | None, Option(help="To serve on after SIGTERM, not ready any more; then it drains.")
    ] = None
    drain_seconds: Annotated[float | None, Option(help="For running requests after SIGTERM.")] = (
        None
    )
    log_level: Annotated[str | None, Option(help="debug, info, warning or error.")] = None
    clients: Annotated[
        str | None, Option(metavar="FILE", help="TOML: who may call, by which tokens.")
    ] = None
    certificate: Annotated[
        str | None, Option(metavar="FILE", help="PEM: the server's; its gRPC has TLS then.")
    ] = None
    private_key: Annotated[str | None, Option(metavar="FILE", help="PEM: of it.")] = None
    client_ca: Annotated[
        str | None, Option(metavar="FILE", help="PEM: whose certificates callers must have.")
    ] = None
    max_queue: Annotated[int | None, Option(help="Requests that may wait.")] = None
    max_rows: Annotated[int | None, Option(help="Sequences, or rows of images, in one step.")] = (
        None
    )
    max_requests: Annotated[
        int | None, Option(help="Requests for images that run at the same time.")
    ] = None
    max_pixels: Annotated[int | None, Option(help="Of one image, given or made.")] = None
    max_steps: Annotated[int | None, Option(help="Scheduler steps of one image.")] = None
    gather_seconds: Annotated[
        float | None, Option(help="How long an image's step waits for others to join it.")
    ] = None
    config: Annotated[Path | None, Option(metavar="FILE", help="TOML file of settings.")] = None

    def settings(self) -> Settings:
        """Return the settings: these flags first, then the environment, then the file.

        Raises:
            SettingsError: A setting is unknown or malformed.
        """
        values = asdict(self)
        flags: dict[str, dict[str, object]] = {}
        for name, (section, key) in _PLACES.items():
            if values[name] is not None:
                flags.setdefault(section, {})[key] = values[name]
        for name in _OF_THE_ENGINE:
            if values[name] is not None:
                for section in _ENGINES:
                    flags.setdefault(section, {})[name] = values[name]
        return load_settings(flags, file=self.config)

"""The flags that set settings."""

from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from typer import Option

from lokr_serve.config import Settings, load_settings

# Where each flag lies in the tree of settings; `config` names the file beside them.
_PLACES = MappingProxyType(
    {
        "model": ("model", "path"),
        "device": ("model", "device"),
        "dtype": ("model", "dtype"),
        "threads": ("model", "num_threads"),
        "adapter_dir": ("adapters", "directory"),
        "device_bytes": ("adapters", "device_bytes"),
        "host_bytes": ("adapters", "host_bytes"),
        "merge_cache_bytes": ("adapters", "merge_cache_bytes"),
        "allow_lossy_merge": ("adapters", "allow_lossy_merge"),
        "listen": ("server", "listen"),
        "admin_listen": ("server", "admin_listen"),
        "metrics_listen": ("server", "metrics_listen"),
        "reflection": ("server", "reflection"),
        "drain_seconds": ("server", "drain_seconds"),
        "log_level": ("server", "log_level"),
        "max_queue": ("text", "max_queue"),
        "max_rows": ("text", "max_rows"),
    }
)


@dataclass(frozen=True, kw_only=True)
class SettingsFlags:
    """Flags for what is set most often; the environment and a file can set everything."""

    model: Annotated[Path | None, Option(metavar="DIR", help="Folder of the base model.")] = None
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:N or auto.")] = None
    dtype: Annotated[str | None, Option(help="Of the base weights, such as bfloat16.")] = None
    threads: Annotated[int | None, Option(help="Threads of one torch operation.")] = None
    adapter_dir: Annotated[Path | None, Option(metavar="DIR", help="Folder of adapters.")] = None
    device_bytes: Annotated[int | None, Option(help="For adapters on the device.")] = None
    host_bytes: Annotated[int | None, Option(help="For adapters on the host.")] = None
    merge_cache_bytes: Annotated[int | None, Option(help="For merged weights.")] = None
    allow_lossy_merge: Annotated[
        bool | None, Option(help="Merge also where rounding loses much of the delta.")
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
    drain_seconds: Annotated[float | None, Option(help="For running requests after SIGTERM.")] = (
        None
    )
    log_level: Annotated[str | None, Option(help="debug, info, warning or error.")] = None
    max_queue: Annotated[int | None, Option(help="Requests that may wait.")] = None
    max_rows: Annotated[int | None, Option(help="Sequences in one step.")] = None
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
        return load_settings(flags, file=self.config)

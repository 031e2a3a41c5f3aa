"""``lokr-serve adapters``."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from lokr_serve.cli.command import ADMIN_SERVER, JsonFlag, ServerFlag, TimeoutFlag
from lokr_serve.cli.connecting import ClientCommand
from lokr_serve.cli.output import byte_progress, print_adapter, print_json, print_table, progress
from lokr_serve.client import Client
from lokr_serve.types import AdapterOverrides, AdapterStatus, LoadSpec, UploadOptions

AdapterId = Annotated[str, Argument(metavar="ID", help="The adapter.")]
Ttl = Annotated[
    float | None, Option(metavar="SECONDS", help="Time to live after its last use; 0 is for ever.")
]

_COLUMNS = (
    "ID",
    "STATE",
    "VERSION",
    "ALGORITHMS",
    "DEVICE BYTES",
    "IN FLIGHT",
    "PINNED",
    "TTL SECONDS",
    "DECLARED",
    "ALIASES",
)


@dataclass(frozen=True, kw_only=True)
class _AdapterCommand(ClientCommand):
    server: ServerFlag = ADMIN_SERVER
    timeout: TimeoutFlag = 300.0
    as_json: JsonFlag = False

    def client(self) -> Client:
        return self.connect(self.server, self.timeout)


@dataclass(frozen=True, kw_only=True)
class _Registration(_AdapterCommand):
    replace: Annotated[bool, Option("--replace", help="Swap other content of this id.")] = False
    pinned: Annotated[bool, Option("--pinned", help="Never evict it.")] = False
    ttl: Ttl = None
    partial: Annotated[bool, Option("--partial", help="Leave out unmatched tensors.")] = False
    scale_override: Annotated[float | None, Option(help="In place of the file's scale.")] = None
    alpha: Annotated[float | None, Option(help="In place of the file's alpha.")] = None
    rank: Annotated[int | None, Option(help="In place of the file's rank.")] = None

    def overrides(self) -> AdapterOverrides:
        return AdapterOverrides(
            partial=self.partial,
            scale_override=self.scale_override,
            alpha=self.alpha,
            rank=self.rank,
        )


@dataclass(frozen=True, kw_only=True)
class Load(_Registration):
    """Register an adapter and load it."""

    adapter_id: AdapterId
    source: Annotated[
        str,
        Argument(metavar="SOURCE", help="A path in the server's adapter folder, hf:// or a URI."),
    ]
    digest: Annotated[str | None, Option(help="SHA-256 that the file must have.")] = None

    def run(self) -> None:
        """Load it and print it."""
        spec = LoadSpec(
            adapter_id=self.adapter_id,
            source=self.source,
            replace=self.replace,
            pinned=self.pinned,
            ttl_seconds=self.ttl,
            digest=self.digest,
            overrides=self.overrides(),
        )
        with self.client() as client, progress(f"loading {self.adapter_id}"):
            adapter = client.load_adapter(spec)
        print_adapter(adapter, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Upload(_Registration):
    """Send an adapter's file to the server, register it and load it."""

    adapter_id: AdapterId
    path: Annotated[Path, Argument(metavar="PATH", help="A safetensors file, or PEFT's folder.")]

    def run(self) -> None:
        """Send it, and print the adapter."""
        options = UploadOptions(
            replace=self.replace,
            pinned=self.pinned,
            ttl_seconds=self.ttl,
            overrides=self.overrides(),
        )
        with self.client() as client, byte_progress(f"sending {self.adapter_id}") as sent:
            adapter = client.upload_adapter(self.adapter_id, self.path, options, progress=sent)
        print_adapter(adapter, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Unload(_AdapterCommand):
    """Wait until no request uses an adapter, then remove it; only an upload's file goes too."""

    adapter_id: AdapterId
    drain_seconds: Annotated[float | None, Option(help="How long to wait; 30 if unset.")] = None
    force: Annotated[bool, Option("--force", help="Then end what still uses it.")] = False

    def run(self) -> None:
        """Unload it and print what that freed."""
        with self.client() as client, progress(f"draining {self.adapter_id}"):
            freed_bytes = client.unload_adapter(
                self.adapter_id, drain_seconds=self.drain_seconds, force=self.force
            )
        if self.as_json:
            print_json({"freed_bytes": freed_bytes})
        else:
            typer.echo(f"{freed_bytes} bytes freed")


@dataclass(frozen=True, kw_only=True)
class List(_AdapterCommand):
    """List the registered adapters."""

    prefix: Annotated[str, Argument(help="What their ids start with.")] = ""

    def run(self) -> None:
        """Print them."""
        with self.client() as client:
            adapters = list(client.list_adapters(self.prefix))
        if self.as_json:
            print_json([asdict(adapter) for adapter in adapters])
            return
        print_table(_COLUMNS, [_row(adapter) for adapter in adapters])


def _row(adapter: AdapterStatus) -> Sequence[object]:
    return (
        adapter.adapter_id,
        adapter.state,
        adapter.version,
        adapter.algorithms,
        adapter.device_bytes,
        adapter.in_flight,
        adapter.pinned,
        adapter.ttl_seconds or None,
        adapter.is_declared,
        adapter.aliases,
    )


@dataclass(frozen=True, kw_only=True)
class Show(_AdapterCommand):
    """Show all that the server knows of an adapter."""

    adapter_id: AdapterId

    def run(self) -> None:
        """Print it."""
        with self.client() as client:
            print_adapter(client.get_adapter(self.adapter_id), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Update(_AdapterCommand):
    """Change how an adapter is kept."""

    adapter_id: AdapterId
    pinned: Annotated[bool | None, Option(help="Whether it is never evicted.")] = None
    ttl: Ttl = None

    def run(self) -> None:
        """Change it and print it."""
        with self.client() as client:
            adapter = client.update_adapter(
                self.adapter_id, pinned=self.pinned, ttl_seconds=self.ttl
            )
        print_adapter(adapter, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Pin(_AdapterCommand):
    """Keep an adapter in memory: it is never evicted."""

    adapter_id: AdapterId

    def run(self) -> None:
        """Pin it and print it."""
        with self.client() as client:
            adapter = client.update_adapter(self.adapter_id, pinned=True)
        print_adapter(adapter, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Unpin(_AdapterCommand):
    """Let an adapter be evicted again."""

    adapter_id: AdapterId

    def run(self) -> None:
        """Unpin it and print it."""
        with self.client() as client:
            adapter = client.update_adapter(self.adapter_id, pinned=False)
        print_adapter(adapter, as_json=self.as_json)


def adapters_app() -> typer.Typer:
    """Return the commands about adapters."""
    app = typer.Typer(help="Load, upload, list and unload adapters.", no_args_is_help=True)
    app.command("load")(Load)
    app.command("upload")(Upload)
    app.command("unload")(Unload)
    app.command("list")(List)
    app.command("show")(Show)
    app.command("update")(Update)
    app.command("pin")(Pin)
    app.command("unpin")(Unpin)
    return app

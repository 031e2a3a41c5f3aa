"""``lokr-serve serve``."""

import json
from dataclasses import asdict, dataclass

import typer

from lokr_serve.cli.output import progress
from lokr_serve.cli.settings import SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Serve(SettingsFlags):
    """Serve a base model and the adapters that requests name.

    Settings come from flags, then from variables LOKR_SERVE__SECTION__KEY, then from the file.
    When it is ready, it prints one line of JSON that says where it listens.
    """

    def run(self) -> None:
        """Serve until a signal ends it."""
        settings = self.settings()
        from lokr_serve.app import Addresses, run  # with transformers: slow to import

        with progress(f"loading {settings.model.path}") as stop_progress:

            def on_ready(addresses: Addresses) -> None:
                stop_progress()
                line = {"event": "ready", **asdict(addresses), "model": str(settings.model.path)}
                typer.echo(json.dumps(line))

            run(settings, on_ready)

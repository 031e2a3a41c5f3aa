"""``lokr-serve health``."""

from dataclasses import dataclass
from typing import Annotated

import typer

from lokr_serve.cli.command import INFERENCE_SERVER, JsonFlag, ServerFlag, TimeoutFlag
from lokr_serve.cli.connecting import ClientCommand
from lokr_serve.cli.output import print_json
from lokr_serve.client import Health


@dataclass(frozen=True, kw_only=True)
class CheckHealth(ClientCommand):
    """Say whether a server takes requests; exits with 1 if it does not."""

    service: Annotated[
        str, typer.Argument(help="lokr_serve.v1.TextService or another, liveness or readiness.")
    ] = ""
    server: ServerFlag = INFERENCE_SERVER
    timeout: TimeoutFlag = 5.0
    as_json: JsonFlag = False

    def run(self) -> None:
        """Ask, print the answer, and exit by it."""
        with self.connect(self.server, self.timeout) as client:
            health = client.health(self.service)
        if self.as_json:
            print_json({"status": health})
        else:
            typer.echo(health.value)
        if health is not Health.SERVING:
            raise typer.Exit(1)

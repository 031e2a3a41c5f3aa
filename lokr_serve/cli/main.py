"""The program: its commands, and what becomes of errors."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from lokr_core import LokrError, MixError
from lokr_serve.cli.adapters import adapters_app
from lokr_serve.cli.command import Command
from lokr_serve.cli.config import config_app
from lokr_serve.cli.convert import Convert
from lokr_serve.cli.generate import Generate
from lokr_serve.cli.health import CheckHealth
from lokr_serve.cli.image import MakeImage
from lokr_serve.cli.inspect import Inspect
from lokr_serve.cli.serve import Serve
from lokr_serve.client.errors import UnauthenticatedError, UnavailableError
from lokr_serve.errors import InvalidRequestError, SettingsError

USAGE_CODE = 2
FAILURE_CODE = 1


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"lokr-serve {version('lokr-serve')}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            typer.echo("lokr-serve, version unknown")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            expose_value=False,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Serve one base model with many LoKr adapters, and talk to such a server."""


def _run(command: Command) -> None:
    command.run()


def _build_app() -> typer.Typer:
    app = typer.Typer(
        name="lokr-serve",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        result_callback=_run,
    )
    app.callback()(_options)
    app.command("serve")(Serve)
    app.command("generate")(Generate)
    app.command("image")(MakeImage)
    app.command("health")(CheckHealth)
    app.command("inspect")(Inspect)
    app.command("convert")(Convert)
    app.add_typer(adapters_app(), name="adapters")
    app.add_typer(config_app(), name="config")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; exits with 0, 2 for usage and settings, or 1 for all else.

    Args:
        arguments: What follows the program's name; the process's own if None.
    """
    try:
        _build_app()(arguments)
    except (InvalidRequestError, MixError, SettingsError) as error:
        _fail(error, USAGE_CODE)
    except LokrError as error:
        _fail(error, FAILURE_CODE)


def _fail(error: LokrError, code: int) -> None:
    typer.echo(f"lokr-serve: {error}{_flags_that_help(error)}", err=True)
    sys.exit(code)


def _flags_that_help(error: LokrError) -> str:
    """Return the flags that may mend what neither the server nor the transport knows them for."""
    match error:
        case UnauthenticatedError():
            return " (--token-file, or --tls-certificate and --tls-key)"
        case UnavailableError(reason=""):  # it did not come from a server
            return " (is it the right --server, and does it want --tls or --tls-ca?)"
        case _:
            return ""

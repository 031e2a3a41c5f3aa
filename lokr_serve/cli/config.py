"""``lokr-serve config``."""

import hashlib
import secrets
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from lokr_serve.cli.command import JsonFlag
from lokr_serve.cli.output import print_facts, print_json
from lokr_serve.cli.settings import SettingsFlags
from lokr_serve.errors import SettingsError

TOKEN_BYTES = 32  # that are drawn for a new token
MIN_TOKEN_CHARS = 16  # of one that is given: a short one could be guessed from its hash


@dataclass(frozen=True, kw_only=True)
class ShowConfig(SettingsFlags):
    """Show every setting as `serve` would have it with the same flags, environment and file."""

    as_json: JsonFlag = False

    def run(self) -> None:
        """Print the settings."""
        tree = self.settings().model_dump(mode="json")
        if self.as_json:
            print_json(tree)
            return
        print_facts(
            {
                f"{section}.{key}": value
                for section, values in tree.items()
                for key, value in values.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class HashToken:
    """Print the line for the file of clients that a bearer token is known by.

    The token is read from standard input, where no list of processes shows it; or a new one is
    drawn, and printed as well.
    """

    generate: Annotated[bool, Option("--generate", help="Draw a new token and print it.")] = False
    as_json: JsonFlag = False

    def run(self) -> None:
        """Print the hash, and the token if it is new."""
        token = secrets.token_urlsafe(TOKEN_BYTES) if self.generate else _read_token()
        digest = hashlib.sha256(token.encode()).hexdigest()
        new = {"token": token} if self.generate else {}
        if self.as_json:
            print_json({**new, "sha256": digest})
            return
        print_facts({**new, "tokens_sha256": f'["{digest}"]'})


def _read_token() -> str:
    token = sys.stdin.read().strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise SettingsError("standard input: a token is printable ASCII, without spaces")
    if len(token) < MIN_TOKEN_CHARS:
        raise SettingsError(
            f"standard input: a token has at least {MIN_TOKEN_CHARS} characters; "
            "draw one with --generate"
        )
    return token


def config_app() -> typer.Typer:
    """Return the commands about settings."""
    app = typer.Typer(help="Look at settings, and make what they need.", no_args_is_help=True)
    app.command("show")(ShowConfig)
    app.command("hash-token")(HashToken)
    return app

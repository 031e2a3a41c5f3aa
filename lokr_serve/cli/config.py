"""``lokr-serve config``."""

from dataclasses import dataclass

import typer

from lokr_serve.cli.command import JsonFlag
from lokr_serve.cli.output import print_facts, print_json
from lokr_serve.cli.settings import SettingsFlags


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


def config_app() -> typer.Typer:
    """Return the commands about settings."""
    app = typer.Typer(help="Look at settings.", no_args_is_help=True)
    app.command("show")(ShowConfig)
    return app

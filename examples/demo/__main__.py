"""``make demo``: one model, several adapters at once, swapped while it runs."""

import asyncio
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from examples.demo.checks import problems
from examples.demo.data import DemoData
from examples.demo.report import print_report, shown_live
from examples.demo.scenes import Play, Stage, hire_cast
from examples.demo.server import DemoError, free_ports, running_server, serve_command
from lokr_serve.client import AsyncClient

FOLDER = Path("demo-data")


def main() -> None:
    """Train what is missing, serve it, and show what happens; exit with 1 if it is not seen."""
    transformers_logging.disable_progress_bar()
    console = Console(width=max(Console().width, 100))
    data = DemoData(root=FOLDER)
    began = time.monotonic()
    data.prepare(console)
    console.print(f"the model and its adapters are ready after {time.monotonic() - began:.0f} s")
    play = asyncio.run(_serve_and_play(data, console))
    print_report(play, console)
    unseen = problems(play)
    for claim in unseen:
        console.print(f"[red]not seen: {claim}[/]")
    if unseen:
        sys.exit(1)
    console.print("\nGo on from here:")
    _print_command(serve_command(data), console)


async def _serve_and_play(data: DemoData, console: Console) -> Play:
    _print_command([*serve_command(data), *free_ports()], console)
    async with running_server(data) as server:
        console.print(f"ready on {server.listen}; metrics at {server.metrics_url}")
        async with AsyncClient(server.listen) as client, AsyncClient(server.admin_listen) as admin:
            stage = Stage(client=client, admin=admin, server=server, data=data, say=console.print)
            cast = hire_cast()
            with shown_live(cast, console):
                return await stage.play(cast)


def _print_command(command: list[str], console: Console) -> None:
    console.print(f"$ {shlex.join(command)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(str(error))

"""``make demo``: one model, several adapters at once, swapped while it runs; then images."""

import asyncio
import multiprocessing
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from examples.demo.checks import problems
from examples.demo.data import DemoData
from examples.demo.images.data import ImageData
from examples.demo.images.show import example_command, show_images
from examples.demo.report import print_report, shown_live
from examples.demo.scenes import Play, Stage, hire_cast
from examples.demo.server import DemoError, free_ports, running_server, serve_command
from lokr_serve.client import AsyncClient

FOLDER = Path("demo-data")
IMAGES_FOLDER = FOLDER / "images"


def main() -> None:
    """Train what is missing, serve it, and show what happens; exit with 1 if it is not seen."""
    transformers_logging.disable_progress_bar()
    console = Console(width=max(Console().width, 100))
    data, image_data = DemoData(root=FOLDER), ImageData(root=IMAGES_FOLDER)
    _prepare(data, image_data, console)
    play = asyncio.run(_serve_and_play(data, console))
    print_report(play, console)
    unseen = [*problems(play), *asyncio.run(show_images(image_data, console))]
    for claim in unseen:
        console.print(f"[red]not seen: {claim}[/]")
    if unseen:
        console.print(
            "Training is cut short on a machine that is slow, or busy with other things. If that "
            f"is why, remove {FOLDER} and run it again when the machine is idle."
        )
        sys.exit(1)
    console.print("all that the demo is to show was checked and seen")
    console.print("\nGo on from here, with the one or the other:")
    _print_command(serve_command(data.model, data.adapters), console)
    _print_command(serve_command(image_data.model, image_data.adapters), console)
    _print_command(example_command(), console)


def _prepare(data: DemoData, image_data: ImageData, console: Console) -> None:
    """Train for text here and for images in a process of its own, a core for each."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        images = process.submit(image_data.prepare)
        data.prepare(console)
        console.print(f"the model and its adapters are ready after {_seconds_since(began)}")
        image_seconds = images.result()
    console.print(
        f"the pipeline and its adapters are ready after {_seconds_since(began)}; "
        f"a process beside this one made them in {image_seconds:.0f} s"
    )


async def _serve_and_play(data: DemoData, console: Console) -> Play:
    command = [*serve_command(data.model, data.adapters), *free_ports()]
    _print_command(command, console)
    async with running_server(command, data.log) as server:
        console.print(f"ready on {server.listen}; metrics at {server.metrics_url}")
        async with AsyncClient(server.listen) as client, AsyncClient(server.admin_listen) as admin:
            stage = Stage(client=client, admin=admin, server=server, data=data, say=console.print)
            cast = hire_cast()
            with shown_live(cast, console):
                return await stage.play(cast)


def _print_command(command: list[str], console: Console) -> None:
    console.print(f"$ {shlex.join(command)}", soft_wrap=True, highlight=False)


def _seconds_since(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(str(error))

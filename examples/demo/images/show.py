"""The image part, once its pipeline is there: serve it, ask for pictures, lay them out."""

import shlex

from rich.console import Console

from examples.demo.images.checks import problems
from examples.demo.images.data import ImageData
from examples.demo.images.gallery import PARAMS, Gallery, make_gallery
from examples.demo.images.mixes import HALVES
from examples.demo.images.sheet import contact_sheet
from examples.demo.server import free_ports, running_server, serve_command


async def show_images(data: ImageData, console: Console) -> list[str]:
    """Write the contact sheet, and return what cannot be seen on it."""
    command = [*serve_command(data.model, data.adapters), *free_ports()]
    console.print(f"\n$ {shlex.join(command)}", soft_wrap=True, highlight=False)
    async with running_server(command, data.log) as server:
        gallery = await make_gallery(server)
    contact_sheet(gallery.together).save(data.sheet, optimize=True)
    console.print(_summary(gallery), f"the contact sheet is {data.sheet}", sep="\n")
    return problems(gallery)


def example_command() -> list[str]:
    """Return a command line that asks for one more picture."""
    adapters = [f"{part.adapter_id}*{part.weight:g}" for part in HALVES.adapters]
    mix = [word for adapter in adapters for word in ("--adapter", adapter)]
    sampling = ["--steps", str(PARAMS.num_steps), "--guidance", str(PARAMS.guidance_scale)]
    return ["lokr-serve", "image", "--prompt", "a blue house at sea", *mix, *sampling]


def _summary(gallery: Gallery) -> str:
    seen = gallery.scrape
    return (
        f"{len(gallery.together)} pictures at once in {gallery.seconds:.1f} s: "
        f"{seen.mean('lokr_serve_step_rows'):.1f} rows and "
        f"{seen.mean('lokr_serve_step_mixes'):.1f} mixes per step"
    )

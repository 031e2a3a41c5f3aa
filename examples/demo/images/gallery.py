"""Ask a running server for every picture of the contact sheet."""

import asyncio
import io
import time
from dataclasses import dataclass

from PIL import Image

from examples.demo.images.mixes import BASE, EVERY_MIX, PROMPTS, StyleMix
from examples.demo.scrape import Scrape, scrape
from examples.demo.server import Server
from lokr_serve.client import AsyncClient
from lokr_serve.types import ImageParams, ImageRequest

PARAMS = ImageParams(num_steps=12, guidance_scale=1.5, seed=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """What a picture was made of."""

    prompt: str
    mix: StyleMix


Pictures = dict[Title, Image.Image]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gallery:
    """The pictures, and how they came about."""

    together: Pictures  # all of them asked for at once
    alone: Pictures  # those of the first prompt once more, one after the other
    scrape: Scrape  # after those that were asked for at once
    seconds: float  # for all at once


async def make_gallery(server: Server) -> Gallery:
    """Ask for every mix of every prompt at once, a client for each prompt; then for some alone."""
    began = time.monotonic()
    together: Pictures = {}
    for pictures in await asyncio.gather(*(_ask_at_once(server, prompt) for prompt in PROMPTS)):
        together |= pictures
    seconds = time.monotonic() - began
    seen = await asyncio.to_thread(scrape, server.metrics_url)
    alone: Pictures = {}
    async with AsyncClient(server.listen) as client:
        for title in (Title(prompt=PROMPTS[0], mix=mix) for mix in (*EVERY_MIX[1:], BASE)):
            alone[title] = await _ask(client, title)
    return Gallery(together=together, alone=alone, scrape=seen, seconds=seconds)


async def _ask_at_once(server: Server, prompt: str) -> Pictures:
    titles = [Title(prompt=prompt, mix=mix) for mix in EVERY_MIX]
    async with AsyncClient(server.listen) as client:
        pictures = await asyncio.gather(*(_ask(client, title) for title in titles))
    return dict(zip(titles, pictures, strict=True))


async def _ask(client: AsyncClient, title: Title) -> Image.Image:
    reply = await client.generate_image_once(
        ImageRequest(prompt=title.prompt, adapters=title.mix.adapters, params=PARAMS)
    )
    return Image.open(io.BytesIO(reply.images[0].data)).convert("RGB")

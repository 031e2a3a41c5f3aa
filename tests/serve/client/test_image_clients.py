"""Both clients make images, against a real server."""

from contextlib import aclosing

import pytest

from lokr_serve.client import AsyncClient, InvalidArgumentError, NotFoundError
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    GeneratedImage,
    ImageFinished,
    ImageOutput,
    ImageParams,
    ImageProgress,
    ImageRequest,
    ImageStarted,
)
from tests.serve.running import Connection

SHORT = ImageRequest(
    prompt="a cat",
    adapters=(AdapterWeight(adapter_id="ink"),),
    params=ImageParams(width=32, height=16, num_steps=2, seed=3, num_images=2),
    output=ImageOutput(latents=True),
    apply_mode=ApplyMode.UNMERGED,
)
LONG = ImageRequest(prompt="a cat", params=ImageParams(width=16, height=16, num_steps=900))


async def test_both_clients_get_the_same_images(shared_image_server: Connection) -> None:
    """What works in a script works in a service."""
    blocking = shared_image_server.client.generate_image_once(SHORT)
    async with AsyncClient(shared_image_server.addresses.listen) as client:
        asynchronous = await client.generate_image_once(SHORT)

    assert asynchronous.images == blocking.images
    assert [image.index for image in blocking.images] == [0, 1]
    assert all(image.latents for image in blocking.images)
    assert asynchronous.started.mix_name == "ink"


async def test_events_come_in_order(shared_image_server: Connection) -> None:
    """An image comes before its end, and everything after the start."""
    async with AsyncClient(shared_image_server.addresses.listen) as client:
        kinds = [type(event) async for event in client.generate_image(SHORT)]

    assert kinds[0] is ImageStarted
    assert kinds[-4:] == [GeneratedImage, ImageFinished] * 2
    assert set(kinds[1:-4]) <= {ImageProgress}


async def test_closing_the_stream_cancels_the_request(shared_image_server: Connection) -> None:
    """A user who closes the page pays for no more steps."""
    async with AsyncClient(shared_image_server.addresses.listen) as client:
        async with aclosing(client.generate_image(LONG)) as events:
            while not isinstance(await anext(events), ImageProgress):
                pass
        reply = await client.generate_image_once(SHORT)

    assert reply.images


async def test_errors_are_typed(shared_image_server: Connection) -> None:
    """They are those of text."""
    nobody = ImageRequest(prompt="x", adapters=(AdapterWeight(adapter_id="nobody"),))
    uneven = ImageRequest(prompt="x", params=ImageParams(width=17))
    async with AsyncClient(shared_image_server.addresses.listen) as client:
        with pytest.raises(NotFoundError):
            await client.generate_image_once(nobody)
        with pytest.raises(InvalidArgumentError) as caught:
            await client.generate_image_once(uneven)

    assert caught.value.field == "params.width"

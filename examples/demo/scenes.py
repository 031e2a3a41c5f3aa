"""What happens in the demo, in order; each scene says what it did."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from examples.demo.data import DemoData
from examples.demo.scrape import Scrape, scrape
from examples.demo.server import DemoError, Server
from examples.demo.stream import Stream
from examples.demo.train_adapters import LEET, MARGIN, NEW_MARGIN
from lokr_serve.client import AsyncClient, NotFoundError
from lokr_serve.types import AdapterStatus, LoadSpec

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cast:
    """The requests, in the order of their start."""

    base: Stream
    code: Stream
    capitals: Stream
    margin: Stream
    mix: Stream
    new_margin: Stream
    leet: Stream

    @property
    def first(self) -> tuple[Stream, ...]:
        """Those that start at once."""
        return self.base, self.code, self.capitals, self.margin, self.mix

    @property
    def all(self) -> tuple[Stream, ...]:
        """All of them."""
        return *self.first, self.new_margin, self.leet


def hire_cast() -> Cast:
    """Return the requests, not yet sent."""
    return Cast(
        base=Stream("base model", {}),
        code=Stream("code", {"code": 1.0}),
        capitals=Stream("capitals", {"capitals": 1.0}),
        margin=Stream("margin", {"margin": 1.0}),
        mix=Stream("capitals*0.7+margin*0.7", {"capitals": 0.7, "margin": 0.7}),
        new_margin=Stream("margin, replaced", {"margin": 1.0}),
        leet=Stream("leet, hot-loaded", {"leet": 1.0}),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Play:
    """Everything that happened."""

    cast: Cast
    replaced_at: float  # on time.monotonic's clock
    adapters: tuple[AdapterStatus, ...]  # before one was unloaded
    scrape: Scrape
    seconds: float  # from the first request to the end of the last


class Stage:
    """A running server and two clients: one that generates and one that changes adapters."""

    def __init__(
        self, *, client: AsyncClient, admin: AsyncClient, server: Server, data: DemoData, say: Say
    ) -> None:
        """Set the stage; ``say`` tells the audience what happens."""
        self._client = client
        self._admin = admin
        self._server = server
        self._data = data
        self._say = say

    async def play(self, cast: Cast) -> Play:
        """Play all scenes.

        Raises:
            DemoError: A request for an unloaded adapter was answered.
            ClientError: A call failed.
        """
        began = time.monotonic()
        async with asyncio.TaskGroup() as streams:
            for stream in cast.first:
                streams.create_task(stream.run(self._client))
            for stream in cast.first:
                await stream.is_flowing.wait()
            self._say(f"{len(cast.first)} requests are being answered, each with its own mix")
            await self._replace_margin()
            replaced_at = time.monotonic()
            streams.create_task(cast.new_margin.run(self._client))
            await self._hot_load_leet()
            streams.create_task(cast.leet.run(self._client))
        seconds = time.monotonic() - began
        adapters = [adapter async for adapter in self._admin.list_adapters()]
        await self._unload_code()
        return Play(
            cast=cast,
            replaced_at=replaced_at,
            adapters=tuple(adapters),
            scrape=await asyncio.to_thread(scrape, self._server.metrics_url),
            seconds=seconds,
        )

    async def _replace_margin(self) -> None:
        await asyncio.to_thread(self._data.publish, NEW_MARGIN, MARGIN)
        began = time.monotonic()
        status = await self._admin.load_adapter(
            LoadSpec(adapter_id="margin", source=MARGIN, replace=True)
        )
        self._say(
            f"replaced margin in {_milliseconds(began)} while {status.in_flight} requests used it; "
            f"new ones get version {status.version}"
        )

    async def _hot_load_leet(self) -> None:
        await asyncio.to_thread(self._data.publish, LEET, LEET)
        began = time.monotonic()
        status = await self._admin.load_adapter(LoadSpec(adapter_id="leet", source=LEET))
        self._say(f"hot-loaded leet in {_milliseconds(began)}, {status.device_bytes:,} bytes")

    async def _unload_code(self) -> None:
        freed_bytes = await self._admin.unload_adapter("code")
        self._say(f"unloaded code, {freed_bytes:,} bytes freed; a request for it now gets:")
        try:
            await Stream("code, unloaded", {"code": 1.0}).run(self._client)
        except NotFoundError as error:
            self._say(f"  {error.code.name} ({error.reason}): {error}")
        else:
            raise DemoError("a request for the unloaded adapter was answered")


def _milliseconds(since: float) -> str:
    return f"{1000 * (time.monotonic() - since):.0f} ms"

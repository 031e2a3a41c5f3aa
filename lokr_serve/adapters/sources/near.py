"""NearSource: a kind of source whose files lie on this machine already."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from lokr_serve.adapters.sources.located import Located
from lokr_serve.adapters.workers import Workers


class NearSource:
    """Finds files in a thread; nobody but the operator removes them, so nothing is held."""

    def __init__(self, locate: Callable[[str], Located], workers: Workers) -> None:
        self._locate = locate
        self._workers = workers

    @asynccontextmanager
    async def held(self, source: str, digest: str | None) -> AsyncIterator[Located]:
        """Yield the files that a source stands for; see :class:`Source`."""
        yield await self._workers.submit(partial(self._locate, source))

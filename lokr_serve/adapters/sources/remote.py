"""RemoteSource: URIs of stores that the operator allows, fetched once and kept."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter
from weakref import WeakValueDictionary

from lokr_core import AdapterError
from lokr_serve.adapters.sources.back_off import BackOff
from lokr_serve.adapters.sources.deadline import Deadline
from lokr_serve.adapters.sources.driver import Driver
from lokr_serve.adapters.sources.fetch import Errand, Fetcher, UnreachableError
from lokr_serve.adapters.sources.fetched import FetchedFiles
from lokr_serve.adapters.sources.located import Located
from lokr_serve.adapters.sources.slots import Slots
from lokr_serve.adapters.sources.uris import AllowedUris, Uri
from lokr_serve.adapters.workers import Workers, whole
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import DigestMismatchError, SourceUnavailableError
from lokr_serve.metrics import Metrics


class RemoteSource:
    """Fetches in threads of its own, so that a slow store holds up nothing but itself.

    Lives on the event loop. One fetch of a URI runs at a time; whoever waits for it then finds
    its copy. A source that cannot be reached is not tried again for a while.
    """

    def __init__(
        self, root: Path, *, settings: AdapterSettings, workers: Workers, metrics: Metrics
    ) -> None:
        """Bind the folder that copies are kept in.

        Raises:
            SettingsError: What is allowed is malformed.
        """
        self._allowed = AllowedUris(settings.remote)
        self._fetched = FetchedFiles(root, max_bytes=settings.fetched_bytes)
        self._fetcher = Fetcher(self._fetched, max_file_bytes=settings.max_file_bytes)
        self._back_off = BackOff(
            first_seconds=settings.retry_seconds, max_seconds=settings.max_retry_seconds
        )
        self._fetch_seconds = settings.fetch_seconds
        self._retry_seconds = settings.retry_seconds
        self._slots = Slots(settings.max_fetches)
        self._workers = workers
        self._metrics = metrics
        metrics.adapter_load_seconds.labels("store")  # so that the series is there from the start
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._drivers: dict[str, Driver] = {}  # by scheme
        self._loading_driver = threading.Lock()
        self._stop = threading.Event()

    def open(self) -> None:
        """Make the folder, and clear up what a crash left; blocks.

        Raises:
            SettingsError: The folder cannot be made, or another server has it.
        """
        self._fetched.open()

    @asynccontextmanager
    async def held(self, source: str, digest: str | None) -> AsyncIterator[Located]:
        """Yield a copy of a URI's files, as they are in its store now; see :class:`Source`.

        A copy with the digest that was asked for is what it must be, and the store is not asked.
        One with another digest is not kept: it may have changed on its way here.
        """
        uri = self._allowed.require(source)
        name = await self._known(uri, digest) or await self._fetch(source, uri)
        is_spoilt = False
        try:
            located = await self._workers.submit(partial(self._fetched.locate, name))
            if digest not in (None, located.digest):
                is_spoilt = True
                raise DigestMismatchError(source, expected=str(digest), found=str(located.digest))
            try:
                yield located
            except (AdapterError, DigestMismatchError):
                is_spoilt = await self._workers.submit(partial(self._fetched.is_spoilt, name))
                raise
        finally:
            self._fetched.release(name)
            if is_spoilt:
                await self._workers.submit(partial(self._fetched.drop, name))

    def close(self) -> None:
        """Tell the threads to stop; those that a driver does not give back are left behind.

        The folder is left to others when the last of them has ended, or the process has.
        """
        self._stop.set()
        self._slots.close(self._fetched.close)

    async def _known(self, uri: Uri, digest: str | None) -> str | None:
        if digest is None:
            return None
        taking = self._workers.submit(partial(self._fetched.take_digest, str(uri), digest))
        return await whole(taking, undo=self._let_go)

    def _let_go(self, name: str | None) -> None:
        if name is not None:
            self._fetched.release(name)

    async def _fetch(self, source: str, uri: Uri) -> str:
        """Hold a copy of what the store has now, and return its name.

        Raises:
            SourceUnavailableError: It could not be had, which is held against the source; or
                nothing was asked of it, for want of a slot, which is not.
        """
        asked = threading.Event()
        deadline = Deadline(at=monotonic() + self._fetch_seconds, stop=self._stop)
        try:
            async with asyncio.timeout(self._fetch_seconds):
                # Kept alive by those who wait for it, and forgotten with the last of them.
                turn = self._turns.setdefault(str(uri), asyncio.Lock())
                async with turn:
                    self._back_off.require(str(uri))
                    name = await self._run(source, uri, deadline, asked)
        except TimeoutError:
            if not asked.is_set():
                raise self._too_many(source) from None
            raise self._back_off.note(str(uri), self._lateness()) from None
        except UnreachableError as error:
            raise self._back_off.note(str(uri), str(error)) from error
        self._back_off.clear(str(uri))
        return name

    async def _run(self, source: str, uri: Uri, deadline: Deadline, asked: threading.Event) -> str:
        def fetch() -> str:
            asked.set()
            driver = self._driver(source, uri.scheme)
            errand = Errand(source=source, uri=uri, driver=driver, deadline=deadline)
            return self._fetcher.fetch(errand)

        started = perf_counter()
        name = await self._slots.run(fetch, undo=self._fetched.release)
        self._metrics.adapter_load_seconds.labels("store").observe(perf_counter() - started)
        return name

    def _driver(self, source: str, scheme: str) -> Driver:
        with self._loading_driver:
            if scheme not in self._drivers:
                self._drivers[scheme] = Driver(source, scheme)
            return self._drivers[scheme]

    def _too_many(self, source: str) -> SourceUnavailableError:
        problem = (
            f"was not asked for within {self._fetch_seconds:.0f} s, since other fetches were under "
            "way, of which adapters.max_fetches run at a time"
        )
        return SourceUnavailableError(source, problem, self._retry_seconds)

    def _lateness(self) -> str:
        return f"did not come within {self._fetch_seconds:.0f} s"

"""AdapterLoader: brings adapters from their sources to the device, each once for all who wait."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from lokr_core import (
    Adapter,
    AdapterError,
    AdapterFileError,
    AdapterReader,
    LokrError,
    ReadOptions,
    ScaleOverrides,
)
from lokr_core.formats.header import MAX_HEADER_BYTES
from lokr_core.formats.locate import SUFFIX
from lokr_serve.adapters.host import HostCopy, HostTier, pin
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import Residency
from lokr_serve.adapters.sources import Located, Sources
from lokr_serve.adapters.store import fingerprint
from lokr_serve.adapters.turns import LoadTurns
from lokr_serve.adapters.workers import SharedCalls, Workers
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import (
    AdapterBudgetError,
    AdapterLoadCrashedError,
    DeviceMemoryError,
    DigestMismatchError,
)
from lokr_serve.metrics import Metrics

logger = logging.getLogger(__name__)


class AdapterLoader:
    """Loads in the workers; what it returns is not yet added to the model.

    On the CPU the device's memory is the host's, so there is one tier and no second copy; else
    each adapter is kept in host memory too, so that its next load is one transfer.
    """

    def __init__(
        self,
        *,
        sources: Sources,
        residency: Residency,
        workers: Workers,
        turns: LoadTurns,
        settings: AdapterSettings,
        metrics: Metrics,
    ) -> None:
        self._sources = sources
        self._make_way = residency.make_way
        self._reader = AdapterReader(residency.spec)
        self._device = next(iter(residency.spec.modules.values())).weight.device
        self._host = None if self._device.type == "cpu" else HostTier(settings.host_bytes)
        self._max_bytes = settings.device_bytes
        self._metrics = metrics
        self._turns = turns
        metrics.adapter_load_seconds.labels("device")  # so that the series is there from the start
        self._workers = workers
        self._calls: SharedCalls[LoadRequest, Adapter] = SharedCalls(workers)

    def start(self, request: LoadRequest) -> asyncio.Future[Adapter]:
        """Begin a load, or share the one that is running; wait for it with ``join``.

        It fails with an AdapterError, SourceError, SourceUnavailableError, StorageFullError,
        DigestMismatchError, AdapterBudgetError, DeviceMemoryError or AdapterLoadCrashedError.
        """
        return self._calls.share(request, lambda: asyncio.create_task(self._load(request)))

    def host_bytes_of(self, adapter_id: str) -> int:
        """Return the bytes of an id's copy in host memory; 0 where the tiers are one."""
        return 0 if self._host is None else self._host.bytes_of(adapter_id)

    def discard(self, adapter_id: str) -> None:
        """Drop an id's copy in host memory."""
        if self._host is not None:
            self._host.discard(adapter_id)
            self._report(self._host)

    def retain(self, request: LoadRequest) -> None:
        """Note that an id is registered with a request's source."""
        self._sources.retain(request.source)

    def release(self, request: LoadRequest) -> None:
        """Note that an id is not registered with a request's source any more."""
        self._sources.release(request.source)

    async def _load(self, request: LoadRequest) -> Adapter:
        """Load in a task, whose outer edge this is."""
        try:
            async with self._sources.held(request.source, request.digest) as located:
                return await self._bring_if_it_fits(located, request)
        except LokrError:
            self._metrics.adapter_load_failures.inc()
            raise
        except Exception as error:
            self._metrics.adapter_load_failures.inc()
            raise _told(error, request) from error

    async def _bring_if_it_fits(self, located: Located, request: LoadRequest) -> Adapter:
        """Bring an adapter; if the device has no memory for it, what nobody uses makes way once."""
        with suppress(torch.OutOfMemoryError):
            return await self._workers.submit(lambda: self._bring(located, request))
        logger.warning("no memory for adapter %r: what is idle makes way", request.adapter_id)
        self._make_way()
        return await self._workers.submit(lambda: self._bring(located, request))

    def _bring(self, located: Located, request: LoadRequest) -> Adapter:
        if self._host is None:
            with self._timed("device"):
                return self._read(located, request)
        copy = self._host_copy(located, request, self._host)
        with self._timed("device"):
            return replace(copy, buffer=copy.buffer.to(self._device))

    def _host_copy(self, located: Located, request: LoadRequest, host: HostTier) -> Adapter:
        """Return the copy in host memory if the files are what they were, or read them."""
        state = fingerprint(located.path)
        kept = host.get(request, state)
        if kept is not None:
            return kept
        with self._timed("host"):
            adapter = pin(self._read(located, request))
        host.put(HostCopy(adapter=adapter, request=request, fingerprint=state))
        self._report(host)
        return adapter

    def _read(self, located: Located, request: LoadRequest) -> Adapter:
        self.require_size(request, _num_bytes(located.path))
        given = request.overrides
        options = ReadOptions(
            overrides=ScaleOverrides(
                scale=given.scale_override, alpha=given.alpha, rank=given.rank
            ),
            partial=given.partial,
        )
        with self._turns.turn(), _named(located.path, request.source):
            adapter = self._reader.read(located.path, request.adapter_id, options)
        found = adapter.info.digest
        expected = located.digest if request.digest is None else request.digest.lower()
        if expected not in (None, found):
            raise DigestMismatchError(request.source, expected=expected, found=found)
        return adapter

    def require_size(self, request: LoadRequest, num_bytes: int) -> None:
        """Refuse what cannot fit before memory is taken for it; a partial read may take less.

        Raises:
            AdapterBudgetError: Files of so many bytes do not fit the device's budget.
        """
        if num_bytes > self._max_bytes + MAX_HEADER_BYTES and not request.overrides.partial:
            raise AdapterBudgetError(
                f"adapter {request.adapter_id!r}",
                needed_bytes=num_bytes,
                budget_bytes=self._max_bytes,
                tier="device",
            )

    @contextmanager
    def _timed(self, tier: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._metrics.adapter_load_seconds.labels(tier).observe(time.perf_counter() - started)

    def _report(self, host: HostTier) -> None:
        self._metrics.adapters_resident.labels("host").set(len(host))
        self._metrics.adapter_bytes.labels("host").set(host.num_bytes)
        self._metrics.adapter_free_bytes.labels("host").set(host.free_bytes)
        self._metrics.adapter_evictable_bytes.labels("host").set(host.num_bytes)


def _num_bytes(path: Path) -> int:
    files = path.glob(f"*{SUFFIX}") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@contextmanager
def _named(path: Path, source: str) -> Iterator[None]:
    """Name a file by its source in messages: where it lies is not for clients."""
    try:
        yield
    except AdapterFileError as error:
        raise AdapterFileError(str(error).replace(str(path), source)) from error


def _told(error: Exception, request: LoadRequest) -> LokrError:
    """Return what callers are told of an error that nobody in the load expected."""
    match error:
        case torch.OutOfMemoryError():
            return DeviceMemoryError(
                f"adapter {request.adapter_id!r}",
                remedy="unload others, or start the server with a smaller adapters.device_bytes",
            )
        case OSError():
            return AdapterError(f"source {request.source!r} cannot be read: {error.strerror}")
        case _:
            logger.error(
                "loading adapter %r failed unexpectedly", request.adapter_id, exc_info=error
            )
            return AdapterLoadCrashedError(request.adapter_id)

"""AdapterRegistry: every adapter that the server knows, from registration to unload."""

import builtins
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from lokr_core import Adapted
from lokr_serve.adapters.activity import describe_activity
from lokr_serve.adapters.aliases import AliasTable
from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.leasing import Lease, require_adapter_id, require_seconds
from lokr_serve.adapters.lending import AdapterLender
from lokr_serve.adapters.loader import AdapterLoader
from lokr_serve.adapters.merging import MixMerger
from lokr_serve.adapters.policy import Workload
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import LeaveReason, Residency
from lokr_serve.adapters.sources import AnnouncedFile, Sources, Upload
from lokr_serve.adapters.store import AdapterStore
from lokr_serve.adapters.turns import LoadTurns
from lokr_serve.adapters.workers import Workers, join
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import AdapterExistsError
from lokr_serve.metrics import AdapterActivity, Metrics
from lokr_serve.types import (
    AdapterOverrides,
    AdapterStatus,
    AdapterWeight,
    ApplyMode,
    LoadSpec,
)

logger = logging.getLogger(__name__)


class AdapterRegistry:
    """Registers, loads, leases and unloads adapters.

    Lives on the event loop, where all of its state changes, each change in one step without an
    ``await``; files are read and mixes merged in threads of its own.
    """

    def __init__(self, *, adapted: Adapted, settings: AdapterSettings, metrics: Metrics) -> None:
        self._store = AdapterStore(settings.directory)
        self._workers = Workers(settings.max_loads)
        self._sources = Sources(settings=settings, workers=self._workers, metrics=metrics)
        self._leases = LeaseBook()
        self._aliases = AliasTable()
        self._residency = Residency(
            adapted=adapted, budget_bytes=settings.device_bytes, metrics=metrics
        )
        self._loader = AdapterLoader(
            sources=self._sources,
            spec=adapted.spec,
            workers=self._workers,
            turns=LoadTurns(share=settings.load_share, is_serving=lambda: self._lender.is_serving),
            settings=settings,
            metrics=metrics,
        )
        self._catalogue = Catalogue(
            loader=self._loader, residency=self._residency, leases=self._leases, settings=settings
        )
        self._lender = AdapterLender(
            catalogue=self._catalogue,
            residency=self._residency,
            leases=self._leases,
            merger=MixMerger(
                adapted=adapted, workers=self._workers, settings=settings, metrics=metrics
            ),
            max_parts=settings.max_parts,
            metrics=metrics,
        )

    async def scan(self) -> None:
        """Register what lies in the adapter folder; ids that are known already stay as they are.

        Raises:
            SettingsError: The adapter folder does not exist.
        """
        await self._sources.open()
        found = await join(self._workers.submit(self._store.scan))
        for problem in found.problems:
            logger.warning("not registered: %s", problem)
        overrides = AdapterOverrides()
        for adapter_id, source in found.sources.items():
            if adapter_id not in self._catalogue:
                request = LoadRequest(adapter_id=adapter_id, source=source, overrides=overrides)
                self._catalogue.register(request, is_from_directory=True)
        logger.info("%d adapters are registered", len(self._catalogue))

    async def load(self, spec: LoadSpec) -> AdapterStatus:
        """Register an adapter and make it ready; a failure leaves everything as it was.

        To load the content that an id has already changes nothing, except that a pin is added
        and a time to live set if the request has them.

        Raises:
            InvalidRequestError: The id or the time to live is malformed.
            SourceError, DigestMismatchError, AdapterError: It cannot be read or does not fit.
            AdapterExistsError: The id has other content, and ``replace`` is not set.
            AdapterDrainingError: The id is being unloaded.
            AdapterBudgetError: There is no room, or not for a pin.
            DeviceMemoryError: The device has no memory left.
            AdapterLoadCrashedError: The load met a bug of ours.
        """
        require_adapter_id("adapter_id", spec.adapter_id)
        require_seconds("ttl", spec.ttl_seconds)
        self._catalogue.find(spec.adapter_id)
        request = LoadRequest(
            adapter_id=spec.adapter_id,
            source=spec.source,
            overrides=spec.overrides,
            digest=spec.digest,
        )
        adapter = await self._catalogue.read(request)
        record = self._catalogue.find(spec.adapter_id)
        resident = self._residency.get(spec.adapter_id)
        if record is not None and not spec.replace:
            version, is_resident = adapter.ref.version, resident is not None
            if not record.has_content(request, version, is_resident=is_resident):
                raise AdapterExistsError(spec.adapter_id)
            request = record.request
        pinned = spec.pinned or (resident is not None and resident.is_pinned)
        record = self._catalogue.publish(request, adapter, pinned=pinned)
        if spec.ttl_seconds is not None:
            self._catalogue.set_ttl(record, spec.ttl_seconds)
        logger.info("adapter %r is loaded, version %s", spec.adapter_id, adapter.ref.version)
        return self.get(spec.adapter_id)

    def require_uploads(self) -> None:
        """Check that files can be uploaded.

        Raises:
            NotServedError: They cannot.
        """
        self._sources.uploads()

    def receive(self, spec: LoadSpec, file: AnnouncedFile) -> AbstractAsyncContextManager[Upload]:
        """Receive a file in the block, at whose end, and not later, ``spec`` is to be loaded.

        Args:
            spec: How the file is to be registered.
            file: What is announced of it; the block starts when that is found to be acceptable.

        Raises:
            NotServedError: Files cannot be uploaded.
            InvalidRequestError: The id or the time to live is malformed, or the file is too large.
            AdapterDrainingError: The id is being unloaded.
            AdapterBudgetError: The file could never be loaded.
            UploadBusyError, StorageFullError: It cannot be taken now.
        """
        require_adapter_id("header.adapter_id", spec.adapter_id)
        require_seconds("header.ttl", spec.ttl_seconds)
        self._catalogue.find(spec.adapter_id)
        receiving = self._sources.uploads().receive(file)
        self._loader.require_size(LoadRequest.of(spec), file.num_bytes)
        return receiving

    async def unload(self, adapter_id: str, *, drain_seconds: float, force: bool) -> int:
        """Take an id out of service, wait for its requests, and free it; files are not touched.

        Should the wait fail or be cancelled, the id serves again.

        Args:
            adapter_id: The id.
            drain_seconds: How long its requests may take to end by themselves.
            force: End them then, by the ``ended`` of their leases.

        Returns:
            The bytes of the version that was in memory.

        Raises:
            InvalidRequestError: The id or the time is malformed.
            AdapterNotFoundError: The id is not registered.
            AdapterDrainingError: It is being unloaded already.
            AdapterBusyError: It still has requests, and they are not to be ended by force.
        """
        require_adapter_id("adapter_id", adapter_id)
        require_seconds("drain_timeout", drain_seconds)
        record = self._catalogue.get(adapter_id)
        record.is_draining = True
        try:
            await self._leases.drain(adapter_id, drain_seconds=drain_seconds, force=force)
        finally:
            record.is_draining = False
        freed_bytes = self._catalogue.remove(adapter_id, LeaveReason.UNLOAD)
        logger.info("adapter %r is unloaded, %d bytes freed", adapter_id, freed_bytes)
        return freed_bytes

    def get(self, adapter_id: str) -> AdapterStatus:
        """Return what is known of an id, which may be given by an alias.

        Raises:
            InvalidRequestError: The id is malformed.
            AdapterNotFoundError: The id is not registered.
        """
        require_adapter_id("adapter_id", adapter_id)
        return self._describe(self._aliases.resolve(adapter_id))

    def list(self, *, prefix: str = "") -> builtins.list[AdapterStatus]:
        """Return what is known of every id that starts with ``prefix``, sorted by id."""
        ids = sorted(adapter_id for adapter_id in self._catalogue if adapter_id.startswith(prefix))
        return [self._describe(adapter_id) for adapter_id in ids]

    def _describe(self, adapter_id: str) -> AdapterStatus:
        aliases = self._aliases.names_of(adapter_id)
        return self._catalogue.describe(adapter_id, aliases=aliases)

    async def update(
        self, adapter_id: str, *, pinned: bool | None, ttl_seconds: float | None
    ) -> AdapterStatus:
        """Change what is not None; a pin loads the adapter, a time to live of 0 never ends.

        Raises:
            InvalidRequestError: The id or the time to live is malformed.
            AdapterNotFoundError, AdapterDrainingError: The id takes no requests.
            AdapterLoadFailedError, AdapterLoadCrashedError: It is to be pinned and cannot be
                loaded.
            AdapterBudgetError: It is to be pinned and there is no room.
        """
        require_adapter_id("adapter_id", adapter_id)
        require_seconds("ttl", ttl_seconds)
        record = self._catalogue.get(adapter_id)
        if pinned is not None:
            await self._catalogue.pin(adapter_id, pinned=pinned)
            record = self._catalogue.get(adapter_id)
        if ttl_seconds is not None:
            self._catalogue.set_ttl(record, ttl_seconds)
        return self.get(adapter_id)

    def ids_of(self, adapters: Sequence[AdapterWeight]) -> tuple[str, ...]:
        """Return the ids of a mix's adapters, which may be named by aliases; nothing is loaded.

        Raises:
            InvalidRequestError: The mix is malformed, or two names are of the same adapter.
            AdapterNotFoundError, AdapterDrainingError: An adapter takes no requests.
        """
        parts = self._aliases.resolve_parts(adapters)
        self._lender.check(parts)
        return tuple(part.adapter_id for part in parts)

    def lease(
        self, adapters: Sequence[AdapterWeight], mode: ApplyMode, workload: Workload | None = None
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold the mix of a request ready to use, as :meth:`AdapterLender.lease` does.

        Its adapters may be named by aliases.

        Raises:
            InvalidRequestError: Two names are of the same adapter.
        """
        return self._lender.lease(self._aliases.resolve_parts(adapters), mode, workload)

    def activity(self) -> AdapterActivity:
        """Return what requests name that is in memory, and which adapters are waited for."""
        return describe_activity(
            residency=self._residency,
            catalogue=self._catalogue,
            aliases=self._aliases,
            mixes=self._lender.mixes,
        )

    async def close(self) -> None:
        """Stop the timer and the threads; loads that are waited for end in ShuttingDownError."""
        self._catalogue.close()
        await self._sources.close()
        await self._workers.close()

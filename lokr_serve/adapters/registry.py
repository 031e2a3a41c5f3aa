"""AdapterRegistry: every adapter that the server knows, from registration to unload."""

import builtins
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from lokr_core import Adapted
from lokr_serve.adapters.activity import describe_activity
from lokr_serve.adapters.administration import AdapterAdministration
from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.leasing import Lease, require_adapter_id, require_seconds
from lokr_serve.adapters.lending import AdapterLender
from lokr_serve.adapters.loader import AdapterLoader
from lokr_serve.adapters.manifest import AliasTable, DeclaredAdapters, ManifestFile, Reconciler
from lokr_serve.adapters.merging import MixMerger
from lokr_serve.adapters.policy import Workload
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import Residency
from lokr_serve.adapters.sources import AnnouncedFile, Sources, Upload
from lokr_serve.adapters.store import AdapterStore
from lokr_serve.adapters.turns import LoadTurns
from lokr_serve.adapters.workers import Workers, join
from lokr_serve.config import AdapterSettings
from lokr_serve.metrics import AdapterActivity, ManifestMetrics, Metrics
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
        self._settings = settings
        self._metrics = metrics
        self._store = AdapterStore(settings.directory)
        self._workers = Workers(settings.max_loads)
        self._sources = Sources(settings=settings, workers=self._workers, metrics=metrics)
        self._leases = LeaseBook()
        self._aliases = AliasTable()
        self._residency = Residency(
            adapted=adapted,
            budget_bytes=settings.device_bytes,
            idle_seconds=settings.idle_seconds,
            metrics=metrics,
        )
        self._loader = self._build_loader()
        self._catalogue = Catalogue(
            loader=self._loader, residency=self._residency, leases=self._leases, settings=settings
        )
        self._administration = AdapterAdministration(
            catalogue=self._catalogue,
            residency=self._residency,
            leases=self._leases,
            aliases=self._aliases,
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

    def _build_loader(self) -> AdapterLoader:
        share = self._settings.load_share
        return AdapterLoader(
            sources=self._sources,
            residency=self._residency,
            workers=self._workers,
            turns=LoadTurns(share=share, is_serving=lambda: self._lender.is_serving),
            settings=self._settings,
            metrics=self._metrics,
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
        """Register an adapter and make it ready, as :meth:`AdapterAdministration.load` does."""
        await self._administration.load(spec)
        return self._describe(spec.adapter_id)

    async def unload(self, adapter_id: str, *, drain_seconds: float, force: bool) -> int:
        """Drain an adapter and free it, as :meth:`AdapterAdministration.unload` does."""
        return await self._administration.unload(
            adapter_id, drain_seconds=drain_seconds, force=force
        )

    async def update(
        self, adapter_id: str, *, pinned: bool | None, ttl_seconds: float | None
    ) -> AdapterStatus:
        """Change how an adapter is kept, as :meth:`AdapterAdministration.update` does."""
        await self._administration.update(adapter_id, pinned=pinned, ttl_seconds=ttl_seconds)
        return self._describe(adapter_id)

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
            AdapterDeclaredError: The manifest has the id.
            AdapterDrainingError: The id is being unloaded.
            AdapterBudgetError: The file could never be loaded.
            UploadBusyError, StorageFullError: It cannot be taken now.
        """
        require_adapter_id("header.adapter_id", spec.adapter_id)
        require_seconds("header.ttl", spec.ttl_seconds)
        self._administration.require_free(spec.adapter_id)
        receiving = self._sources.uploads().receive(file)
        self._loader.require_size(LoadRequest.of(spec), file.num_bytes)
        return receiving

    def get(self, adapter_id: str) -> AdapterStatus:
        """Return what is known of an id, which may be given by an alias.

        Raises:
            InvalidRequestError: The id is malformed.
            AdapterNotFoundError: The id is not registered.
        """
        require_adapter_id("adapter_id", adapter_id)
        return self._describe(self.resolve(adapter_id))

    def ids(self, *, prefix: str = "") -> builtins.list[str]:
        """Return every registered id that starts with ``prefix``, sorted."""
        return sorted(adapter_id for adapter_id in self._catalogue if adapter_id.startswith(prefix))

    def list(self, ids: Iterable[str] | None = None) -> builtins.list[AdapterStatus]:
        """Return what is known of registered ids, in their order; by default of all, sorted.

        To describe an id costs microseconds, in which the event loop serves nobody: who wants few
        of many picks them from :meth:`ids` first.
        """
        return [self._describe(adapter_id) for adapter_id in (self.ids() if ids is None else ids)]

    def _describe(self, adapter_id: str) -> AdapterStatus:
        aliases = self._aliases.names_of(adapter_id)
        return self._catalogue.describe(adapter_id, aliases=aliases)

    @asynccontextmanager
    async def held_to(
        self, file: ManifestFile, on_complete: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Hold the adapters to a manifest while the block runs.

        Args:
            file: The manifest; what it declares is registered when the block starts.
            on_complete: Is called once every declared adapter has been loaded.
        """
        declared = DeclaredAdapters(
            catalogue=self._catalogue,
            residency=self._residency,
            leases=self._leases,
            aliases=self._aliases,
        )
        reconciler = Reconciler(
            file=file,
            declared=declared,
            settings=self._settings,
            metrics=ManifestMetrics(self._metrics.registry),
        )
        reconciler.start(on_complete)
        try:
            yield
        finally:
            await reconciler.stop()

    def resolve(self, name: str) -> str:
        """Return the id that a name stands for now, whether or not it is registered."""
        return self._aliases.resolve(name)

    def check(self, adapters: Sequence[AdapterWeight]) -> None:
        """Check what can be checked of a mix without loading it; its errors tell what names mean.

        Raises:
            InvalidRequestError: The mix is malformed, or two names are of the same adapter.
            AdapterNotFoundError, AdapterDrainingError: An adapter takes no requests.
        """
        self._lender.check(self._aliases.resolve_parts(adapters))

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
        """Stop the timers and the threads; loads that are waited for end in ShuttingDownError."""
        self._catalogue.close()
        self._residency.close()
        await self._workers.close()  # they read what the sources keep
        await self._sources.close()

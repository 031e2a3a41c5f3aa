"""DeclaredAdapters: makes ids what the manifest says of them, and lets go of them again."""

import logging
from collections.abc import Set
from dataclasses import replace

from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.manifest.aliases import AliasTable, next_targets
from lokr_serve.adapters.manifest.reading import DeclaredAdapter, Manifest
from lokr_serve.adapters.record import NEVER_LOADED, Record, failure_of
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import LeaveReason, Residency
from lokr_serve.errors import AdapterBusyError

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0  # between two lines of the log on what is still in use


class DeclaredAdapters:
    """Changes the catalogue for the manifest; lives on the event loop.

    An id is registered at once, so that requests find it, and loaded later. A version that serves
    goes on serving until the declared one has been loaded, and for as long as that fails.
    """

    def __init__(
        self, *, catalogue: Catalogue, residency: Residency, leases: LeaseBook, aliases: AliasTable
    ) -> None:
        self._catalogue = catalogue
        self._residency = residency
        self._leases = leases
        self._aliases = aliases

    def take(self, entry: DeclaredAdapter) -> None:
        """Register an id as it is declared, or take one over that is there; loads nothing."""
        record = self._catalogue.peek(entry.adapter_id) or self._catalogue.register(entry.request)
        record.is_declared = True
        record.owner = None
        record.refused = None
        if record.request != entry.request:
            self._redirect(record, entry.request)
        if record.ttl_seconds != entry.ttl_seconds:
            self._catalogue.set_ttl(record, entry.ttl_seconds)
        if not entry.pinned:
            self._unpin(record)

    def _redirect(self, record: Record, request: LoadRequest) -> None:
        """Load an id from elsewhere, as soon as that costs nobody a version that serves."""
        if record.is_known and not _is_same(record, request):
            # Until then it can be evicted and loaded again, but only as what it is.
            request = replace(record.request, digest=record.known.info.digest)
        elif not record.is_known:
            record.failed = None
        self._catalogue.set_request(record, request)

    def is_loaded(self, entry: DeclaredAdapter) -> bool:
        """Whether the declared version has been loaded, and could be again."""
        record = self._catalogue.peek(entry.adapter_id)
        if record is None or record.request != entry.request or not record.is_known:
            return False
        return record.failed is None or self.is_resident(entry)

    def is_resident(self, entry: DeclaredAdapter) -> bool:
        """Whether a version of the id is in memory."""
        return self._residency.get(entry.adapter_id) is not None

    def is_settled(self, entry: DeclaredAdapter) -> bool:
        """Whether nothing is left to do for an entry."""
        resident = self._residency.get(entry.adapter_id)
        is_held = not entry.pinned or (resident is not None and resident.is_pinned)
        return is_held and self.is_loaded(entry)

    async def bring(self, entry: DeclaredAdapter) -> None:
        """Load what is declared, in place of what is there, and pin it if that is declared.

        Raises:
            LokrError: It cannot be loaded, or there is no room; what was there still is.
        """
        record = self._catalogue.peek(entry.adapter_id)
        is_due = record is None or record.request != entry.request
        if not is_due and self.is_resident(entry):
            self._residency.set_pinned(entry.adapter_id, entry.pinned)
            return
        adapter = await self._catalogue.read(entry.request)
        self._catalogue.publish(entry.request, adapter, pinned=entry.pinned)
        logger.info(
            "declared adapter %r is loaded, version %s", entry.adapter_id, adapter.ref.version
        )

    def note_failure(self, entry: DeclaredAdapter, error: Exception) -> None:
        """Keep why an entry could not be brought, for whoever asks after the id."""
        if (record := self._catalogue.peek(entry.adapter_id)) is not None:
            record.refused = failure_of(error)

    async def let_go(self, adapter_id: str) -> None:
        """Make an id what it would be without the manifest.

        One that lies in the adapter folder stands for what lies there. Others take no more
        requests and are unloaded when those that run have ended; should that be cancelled, the id
        serves again.
        """
        record = self._catalogue.peek(adapter_id)
        if record is None:
            return
        record.is_declared = False
        record.refused = None
        if record.folder_request is not None:
            self._give_back(record, record.folder_request)
            return
        with record.draining():
            await self._drain(adapter_id)
        if self._catalogue.peek(adapter_id) is record:
            freed_bytes = self._catalogue.remove(adapter_id, LeaveReason.UNLOAD)
            logger.info("adapter %r is declared no more; %d bytes freed", adapter_id, freed_bytes)

    async def _drain(self, adapter_id: str) -> None:
        while True:
            try:
                await self._leases.drain(adapter_id, drain_seconds=DRAIN_SECONDS, force=False)
            except AdapterBusyError as error:
                logger.warning(
                    "adapter %r is declared no more, and has %d requests still",
                    adapter_id,
                    error.in_flight,
                )
            else:
                return

    def _give_back(self, record: Record, request: LoadRequest) -> None:
        adapter_id = request.adapter_id
        if not _is_same(record, request):
            self._residency.drop(adapter_id, LeaveReason.REPLACE)
            record.known, record.failed = NEVER_LOADED, None
        self._catalogue.set_request(record, request)
        self._catalogue.set_ttl(record, 0.0)
        self._unpin(record)
        logger.info("adapter %r is declared no more, and is what the folder has", adapter_id)

    def _unpin(self, record: Record) -> None:
        adapter_id = record.request.adapter_id
        resident = self._residency.get(adapter_id)
        if resident is not None and resident.is_pinned:
            self._residency.set_pinned(adapter_id, pinned=False)
            self._catalogue.set_ttl(record, record.ttl_seconds)  # its time may have passed

    def name(self, manifest: Manifest) -> Set[str]:
        """Give aliases to the ids that have been loaded.

        Returns:
            The ids that names stand for still and that must stay therefore, declared or not.
        """
        current, wanted = self._aliases.targets, manifest.aliases
        names = {*wanted, *wanted.values(), *current, *current.values()}
        loaded = {
            name: name not in manifest.adapters or self.is_loaded(manifest.adapters[name])
            for name in names
            if name in self._catalogue
        }
        targets = next_targets(current, wanted, loaded=loaded)
        if targets != current:
            self._warn_of_hidden(targets.keys() - current.keys())
            self._aliases.publish(targets)
        return {*targets.values(), *(wanted.keys() - targets.keys())}

    def _warn_of_hidden(self, aliases: Set[str]) -> None:
        for alias in sorted(aliases):
            if alias in self._catalogue:
                logger.warning("adapter %r cannot be named: the manifest has an alias of it", alias)


def _is_same(record: Record, request: LoadRequest) -> bool:
    """Whether the known version of an id is what a request asks for."""
    has_source = (record.request.source, record.request.overrides) == (
        request.source,
        request.overrides,
    )
    return has_source and request.digest in (None, record.known.info.digest)

"""AdapterAdministration: what operators do to single adapters, by hand."""

import logging

from lokr_core import Adapter
from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.leasing import require_adapter_id, require_seconds
from lokr_serve.adapters.manifest import AliasTable
from lokr_serve.adapters.ownership import require_owned_room
from lokr_serve.adapters.record import Record
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import LeaveReason, Residency
from lokr_serve.errors import AdapterDeclaredError, AdapterExistsError, AdapterNotFoundError
from lokr_serve.types import LoadSpec

logger = logging.getLogger(__name__)


class AdapterAdministration:
    """Loads, unloads and updates adapters; those that the manifest declares are not its to change.

    Lives on the event loop.
    """

    def __init__(
        self, *, catalogue: Catalogue, residency: Residency, leases: LeaseBook, aliases: AliasTable
    ) -> None:
        self._catalogue = catalogue
        self._residency = residency
        self._leases = leases
        self._aliases = aliases

    async def load(self, spec: LoadSpec) -> None:
        """Register an adapter and make it ready; a failure leaves everything as it was.

        To load the content that an id has already changes nothing, except that a pin is added
        and a time to live set if the request has them.

        Raises:
            InvalidRequestError: The id or the time to live is malformed.
            AdapterDeclaredError: The manifest has the id, and this would change it.
            SourceError, DigestMismatchError, AdapterError: It cannot be read or does not fit.
            AdapterExistsError: The id has other content, and ``replace`` is not set.
            AdapterDrainingError: The id is being unloaded.
            AdapterBudgetError: There is no room, or not for a pin.
            LimitExceededError: Its owner may not have as many bytes of adapters.
            DeviceMemoryError: The device has no memory left.
            AdapterLoadCrashedError: The load met a bug of ours.
        """
        require_adapter_id("adapter_id", spec.adapter_id)
        require_seconds("ttl", spec.ttl_seconds)
        self.require_no_alias(spec.adapter_id)
        self._catalogue.find(spec.adapter_id)
        request = LoadRequest.of(spec)
        adapter = await self._catalogue.read(request)
        resident = self._residency.get(spec.adapter_id)
        is_pinned = resident is not None and resident.is_pinned
        kept = self._kept_request(request, spec, adapter, is_pinned=is_pinned)
        if kept is None:
            require_owned_room(self._catalogue.records, spec, adapter.num_bytes)
        pinned = spec.pinned or is_pinned
        record = self._catalogue.publish(kept or request, adapter, pinned=pinned)
        if kept is None:
            record.owner = spec.owner
        if spec.ttl_seconds is not None:
            self._catalogue.set_ttl(record, spec.ttl_seconds)
        logger.info("adapter %r is loaded, version %s", spec.adapter_id, adapter.ref.version)

    def _kept_request(
        self, request: LoadRequest, spec: LoadSpec, adapter: Adapter, *, is_pinned: bool
    ) -> LoadRequest | None:
        """Return what an id stays registered to because its content is the same, if that is so.

        Raises:
            AdapterDeclaredError: The manifest has the id, and this would change it.
            AdapterExistsError: The id has other content, and ``replace`` is not set.
            AdapterDrainingError: The id is being unloaded.
        """
        self.require_no_alias(spec.adapter_id)
        record, version = self._catalogue.find(spec.adapter_id), adapter.ref.version
        if record is not None and record.is_declared:
            if not record.is_as_wanted(spec, version, is_pinned=is_pinned):
                raise AdapterDeclaredError(spec.adapter_id)
            return record.request
        if record is None or spec.replace:
            return None
        is_resident = self._residency.get(spec.adapter_id) is not None
        if not record.has_content(request, adapter, is_resident=is_resident):
            raise AdapterExistsError(spec.adapter_id)
        return record.request

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
            AdapterNotFoundError: The id is not registered, now or at the end of the wait.
            AdapterDeclaredError: The manifest has the id, now or at the end of the wait.
            AdapterDrainingError: It is being unloaded already.
            AdapterBusyError: It still has requests, and they are not to be ended by force.
        """
        require_adapter_id("adapter_id", adapter_id)
        require_seconds("drain_timeout", drain_seconds)
        record = self.require_undeclared(adapter_id)
        with record.draining():
            await self._leases.drain(adapter_id, drain_seconds=drain_seconds, force=force)
        if self._catalogue.peek(adapter_id) is not record:
            raise AdapterNotFoundError(adapter_id)  # the manifest has let go of it meanwhile
        if record.is_declared:
            raise AdapterDeclaredError(adapter_id)
        freed_bytes = self._catalogue.remove(adapter_id, LeaveReason.UNLOAD)
        logger.info("adapter %r is unloaded, %d bytes freed", adapter_id, freed_bytes)
        return freed_bytes

    async def update(
        self, adapter_id: str, *, pinned: bool | None, ttl_seconds: float | None
    ) -> None:
        """Change what is not None; a pin loads the adapter, a time to live of 0 never ends.

        Raises:
            InvalidRequestError: The id or the time to live is malformed.
            AdapterNotFoundError, AdapterDrainingError: The id takes no requests.
            AdapterDeclaredError: The manifest has the id.
            AdapterLoadFailedError, AdapterLoadCrashedError: It is to be pinned and cannot be
                loaded.
            AdapterBudgetError: It is to be pinned and there is no room.
        """
        require_adapter_id("adapter_id", adapter_id)
        require_seconds("ttl", ttl_seconds)
        record = self.require_undeclared(adapter_id)
        if pinned is not None:
            await self._catalogue.pin(adapter_id, pinned=pinned)
            record = self.require_undeclared(adapter_id)
        if ttl_seconds is not None:
            self._catalogue.set_ttl(record, ttl_seconds)

    def require_no_alias(self, name: str) -> None:
        """Check that requests for an id would find it.

        Raises:
            AdapterDeclaredError: The name is an alias.
        """
        if name in self._aliases.targets:
            raise AdapterDeclaredError(name)

    def require_free(self, adapter_id: str) -> None:
        """Check that something can be loaded under an id, whether it is registered or not.

        Raises:
            AdapterDrainingError: The id is being unloaded.
            AdapterDeclaredError: The manifest has the id, or its name as an alias.
        """
        self.require_no_alias(adapter_id)
        record = self._catalogue.find(adapter_id)
        if record is not None and record.is_declared:
            raise AdapterDeclaredError(adapter_id)

    def require_undeclared(self, adapter_id: str) -> Record:
        """Return the record of an id that takes requests and is its callers' to change.

        Raises:
            AdapterNotFoundError, AdapterDrainingError: The id takes no requests.
            AdapterDeclaredError: The manifest has the id, or its name as an alias.
        """
        if adapter_id not in self._catalogue:
            self.require_no_alias(adapter_id)
        record = self._catalogue.get(adapter_id)
        if record.is_declared:
            raise AdapterDeclaredError(adapter_id)
        return record

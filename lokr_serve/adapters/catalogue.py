"""Catalogue: the registered ids, and the way of each into memory and out of it."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from lokr_core import Adapter, LokrError
from lokr_serve.adapters.expiry import ExpiryTimer
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.loader import AdapterLoader
from lokr_serve.adapters.record import (
    LOAD_ERRORS,
    BegunLoad,
    KnownVersion,
    Record,
    Usage,
    describe,
)
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.residency import LeaveReason, Residency, Resident
from lokr_serve.adapters.tally import Tally
from lokr_serve.adapters.workers import join
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import AdapterDrainingError, AdapterNotFoundError
from lokr_serve.types import AdapterState, AdapterStatus


class Catalogue:
    """Records by id, beside what is in memory of them; lives on the event loop."""

    def __init__(
        self,
        *,
        loader: AdapterLoader,
        residency: Residency,
        leases: LeaseBook,
        settings: AdapterSettings,
    ) -> None:
        self._loader = loader
        self._residency = residency
        self._leases = leases
        self._settings = settings
        self._expiry = ExpiryTimer(self._expire)
        self._records: dict[str, Record] = {}
        self._waiting = Tally()  # by requests that wait for a load
        self._wanted = Tally()  # by callers that keep an id from expiring

    def __len__(self) -> int:
        """Count the registered ids."""
        return len(self._records)

    def __contains__(self, adapter_id: str) -> bool:
        """Whether an id is registered."""
        return adapter_id in self._records

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered ids."""
        return iter(self._records)

    @property
    def records(self) -> Iterable[Record]:
        """The records of all registered ids."""
        return self._records.values()

    @property
    def waiting(self) -> Sequence[str]:
        """The ids that requests wait for."""
        return list(self._waiting)

    def find(self, adapter_id: str) -> Record | None:
        """Return the record of an id, unless it is not registered.

        Raises:
            AdapterDrainingError: The id is being unloaded.
        """
        record = self._records.get(adapter_id)
        if record is not None and record.is_draining:
            raise AdapterDrainingError(adapter_id)
        return record

    def peek(self, adapter_id: str) -> Record | None:
        """Return the record of an id, whatever becomes of it, unless it is not registered."""
        return self._records.get(adapter_id)

    def get(self, adapter_id: str) -> Record:
        """Return the record of an id that takes requests.

        Raises:
            AdapterNotFoundError: The id is not registered.
            AdapterDrainingError: The id is being unloaded.
        """
        record = self.find(adapter_id)
        if record is None:
            raise AdapterNotFoundError(adapter_id)
        return record

    def register(self, request: LoadRequest, *, is_from_directory: bool = False) -> Record:
        """Register an id that is not in memory."""
        record = Record(
            request=request,
            created=datetime.now(UTC),
            idle_since=_now(),
            folder_request=request if is_from_directory else None,
        )
        self._records[request.adapter_id] = record
        self._loader.retain(request)
        return record

    def remove(self, adapter_id: str, reason: LeaveReason) -> int:
        """Forget an id and return the bytes of its version in memory, which leaves."""
        self._loader.release(self._records.pop(adapter_id).request)
        self._expiry.discard(adapter_id)
        self._loader.discard(adapter_id)
        return self._residency.drop(adapter_id, reason)

    def describe(self, adapter_id: str, *, aliases: Sequence[str] = ()) -> AdapterStatus:
        """Return what is known of a registered id."""
        record = self._records.get(adapter_id)
        if record is None:
            raise AdapterNotFoundError(adapter_id)
        resident = self._residency.get(adapter_id)
        usage = Usage(
            state=self._state(record),
            pinned=resident is not None and resident.is_pinned,
            device_bytes=0 if resident is None else resident.num_bytes,
            host_bytes=self._loader.host_bytes_of(adapter_id),
            in_flight=self._leases.count(adapter_id),
            aliases=aliases,
        )
        return describe(record, usage)

    def _state(self, record: Record) -> AdapterState:
        adapter_id = record.request.adapter_id
        if record.is_draining:
            return AdapterState.DRAINING
        if self._residency.get(adapter_id) is not None:
            return AdapterState.READY
        if adapter_id in self._waiting:
            return AdapterState.LOADING
        return AdapterState.REGISTERED if record.failed is None else AdapterState.FAILED

    def publish(self, request: LoadRequest, adapter: Adapter, *, pinned: bool) -> Record:
        """Make what a request loaded the current version of its id, and register the id if new.

        Raises:
            AdapterBudgetError: There is no room; nothing has changed.
        """
        self._residency.publish(adapter, pinned=pinned)
        record = self._records.get(request.adapter_id) or self.register(request)
        self.set_request(record, request)
        record.known = KnownVersion.of(adapter)
        record.failed = record.refused = None
        record.idle_since = _now()
        self._arm_expiry(record)
        return record

    def set_request(self, record: Record, request: LoadRequest) -> None:
        """Say what an id is loaded from the next time."""
        self._loader.retain(request)
        self._loader.release(record.request)
        record.request = request

    async def read(self, request: LoadRequest) -> Adapter:
        """Load without publishing; a failure counts for an id that would load the same."""
        ids = [request.adapter_id]
        try:
            with self.wanting(ids), self._waiting.counting(ids):
                return await join(self._loader.start(request))
        except LOAD_ERRORS as error:
            record = self._records.get(request.adapter_id)
            if record is not None and record.request == request:
                record.note_failure(error, now=_now(), settings=self._settings)
            raise

    @contextmanager
    def wanting(self, ids: Iterable[str]) -> Iterator[None]:
        """Keep ids from expiring while the block loads them, one or all."""
        wanted = tuple(ids)
        try:
            with self._wanted.counting(wanted):
                yield
        finally:
            for adapter_id in wanted:
                if (record := self._records.get(adapter_id)) is not None:
                    self._arm_expiry(record)  # at once, if its time has come

    def begin_load(self, adapter_id: str) -> BegunLoad:
        """Begin to load a registered id that is not in memory, or share its running load.

        Raises:
            AdapterNotFoundError, AdapterDrainingError: The id takes no requests.
            AdapterLoadFailedError, AdapterLoadCrashedError: Its last load failed, and it is too
                early for another.
            AdapterBudgetError: There is no room for what its last load found.
        """
        record = self.get(adapter_id)
        record.require_retry(_now())
        self._residency.require_room(adapter_id, record.known.num_bytes)
        call = self._loader.start(record.request)
        begun = BegunLoad(record=record, request=record.request, call=call)
        call.add_done_callback(lambda _: self._settle(begun))  # before those who wait go on
        return begun

    def _settle(self, begun: BegunLoad) -> None:
        """Keep what a load has come to, also if nobody waits for it any more."""
        if not begun.call.cancelled() and not begun.record.is_draining:
            with suppress(LokrError):  # is for those who wait
                self._keep(begun)

    def _keep(self, begun: BegunLoad) -> None:
        """Publish what a load has brought, or note that it failed.

        What came meanwhile goes first: an unload, or a load of something else.
        """
        record, adapter_id = begun.record, begun.request.adapter_id
        if self._records.get(adapter_id) is not record or record.request != begun.request:
            return
        try:
            adapter = begun.call.result()
        except LOAD_ERRORS as error:
            raise record.note_failure(error, now=_now(), settings=self._settings) from error
        if self._residency.get(adapter_id) is None:
            record.known = KnownVersion.of(adapter)  # its size counts even if there is no room
            self.publish(begun.request, adapter, pinned=False)

    async def load(self, adapter_id: str, begun: BegunLoad | None = None) -> Resident:
        """Return the version in memory of a registered id, loading it if there is none.

        Raises:
            AdapterNotFoundError, AdapterDrainingError: The id takes no requests (any more).
            AdapterLoadFailedError, AdapterLoadCrashedError: The load failed, now or a moment ago.
            AdapterBudgetError: There is no room.
        """
        self.get(adapter_id)
        with self.wanting([adapter_id]):
            while (resident := self._residency.get(adapter_id)) is None:
                await self._finish(begun or self.begin_load(adapter_id))
                begun = None
        return resident

    async def _finish(self, begun: BegunLoad) -> None:
        adapter_id = begun.request.adapter_id
        with self._waiting.counting([adapter_id]), suppress(*LOAD_ERRORS):
            await join(begun.call)
        self.get(adapter_id)
        self._keep(begun)

    async def pin(self, adapter_id: str, *, pinned: bool) -> None:
        """Load an adapter and keep it in memory, or allow it to be evicted again."""
        if pinned:
            await self.load(adapter_id)
        if self._residency.get(adapter_id) is not None:
            self._residency.set_pinned(adapter_id, pinned)
        self._arm_expiry(self.get(adapter_id))

    def set_ttl(self, record: Record, ttl_seconds: float) -> None:
        """Let an id expire when it has been idle for so long; 0 is never."""
        record.ttl_seconds = ttl_seconds
        self._arm_expiry(record)

    def note_use(self, adapter_id: str) -> None:
        """Note that a request begins or ends to use an id."""
        record = self._records[adapter_id]
        record.last_used = datetime.now(UTC)
        record.idle_since = _now()
        self._arm_expiry(record)

    def close(self) -> None:
        """Stop the timer."""
        self._expiry.close()

    def _arm_expiry(self, record: Record) -> None:
        if record.ttl_seconds:
            self._expiry.set(record.request.adapter_id, record.idle_since + record.ttl_seconds)
        else:
            self._expiry.discard(record.request.adapter_id)

    def _expire(self, adapter_id: str) -> None:
        """Let go of an id that has been idle for its time to live.

        One that is leased, pinned or being loaded stays; the end of that sets the timer again.
        An id that is declared, or from the adapter folder, stays registered.
        """
        record, resident = self._records[adapter_id], self._residency.get(adapter_id)
        is_pinned = resident is not None and resident.is_pinned
        is_used = adapter_id in self._wanted or self._leases.count(adapter_id) > 0
        if is_used or is_pinned or record.is_draining:
            return
        if record.is_lasting:
            self._residency.drop(adapter_id, LeaveReason.TTL)
        else:
            self.remove(adapter_id, LeaveReason.TTL)


def _now() -> float:
    return asyncio.get_running_loop().time()

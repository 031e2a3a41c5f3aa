"""AdapterLender: gives each request its mix, ready to use, and takes it back."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

from lokr_core import AdapterRef, Apply
from lokr_serve.adapters.activity import RecentMixes
from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.holders import LeaseBook
from lokr_serve.adapters.leasing import Lease, check_parts, is_used
from lokr_serve.adapters.merging import MixMerger
from lokr_serve.adapters.policy import Workload
from lokr_serve.adapters.residency import Residency, Resident
from lokr_serve.calls import note
from lokr_serve.errors import AdapterUnloadedError
from lokr_serve.interruption import Interruption
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterWeight, ApplyMode


class AdapterLender:
    """Leases mixes; lives on the event loop."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        residency: Residency,
        leases: LeaseBook,
        merger: MixMerger,
        max_parts: int,
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._residency = residency
        self._leases = leases
        self._merger = merger
        self._max_parts = max_parts
        self._metrics = metrics
        self.mixes = RecentMixes()
        self._num_running = 0  # requests for any mix, the base model included
        self._num_leases = 0  # those that have theirs

    @property
    def is_serving(self) -> bool:
        """Whether anything is leased."""
        return self._num_leases > 0

    def check(self, adapters: Sequence[AdapterWeight]) -> None:
        """Check what can be checked of a mix without loading it.

        Raises:
            InvalidRequestError: The mix is malformed.
            AdapterNotFoundError, AdapterDrainingError: An id takes no requests.
        """
        check_parts(adapters, self._max_parts)
        for part in adapters:
            self._catalogue.get(part.adapter_id)

    @asynccontextmanager
    async def lease(
        self, adapters: Sequence[AdapterWeight], mode: ApplyMode, workload: Workload | None = None
    ) -> AsyncIterator[Lease]:
        """Hold the mix of a request ready to use: all of it, or nothing.

        What is not in memory is loaded; nothing waits for room, so leases cannot wait for each
        other. A lease must be given back only when the engine has dropped its rows.

        Args:
            adapters: The parts of the mix.
            mode: How they are to be applied.
            workload: What the request computes, by which auto chooses; a text's decoding if None.

        Raises:
            InvalidRequestError: The mix is malformed, or does not fit its adapters.
            AdapterNotFoundError, AdapterDrainingError: An id takes no requests.
            AdapterLoadFailedError, AdapterLoadCrashedError: An adapter could not be loaded.
            AdapterBudgetError: No room for an adapter, or for merged weights if the mode asks so.
            DeviceMemoryError: The device has no memory left for either.
            AdapterUnloadedError: An adapter was unloaded by force meanwhile.
            LossyMergeError: The mode asks for a merge that rounding would spoil.
        """
        self.check(adapters)
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        with ExitStack() as held:
            held.enter_context(self._running())
            used = [part.adapter_id for part in adapters if is_used(part)]
            async with Interruption(ended, AdapterUnloadedError):  # others may load for long
                refs = await self._hold(used, ended, held)
                mix = self._merger.build(adapters, refs)
                running = self._num_running
                apply = await self._merger.acquire(
                    mix, mode, num_running=running, workload=workload
                )
                if apply is Apply.MERGED:
                    held.callback(self._merger.release, mix)
            self.mixes.note(mix)
            if ended.done():
                raise AdapterUnloadedError(ended.result())
            self._num_leases += 1
            held.callback(self._end_lease)
            ids = tuple(part.adapter_id for part in adapters)
            yield Lease(ids=ids, mix=mix, apply=apply, ended=ended)

    def _end_lease(self) -> None:
        self._num_leases -= 1

    async def _hold(
        self, ids: Iterable[str], ended: asyncio.Future[str], held: ExitStack
    ) -> Mapping[str, AdapterRef]:
        """Load what is missing, side by side, and keep each adapter until ``held`` is closed."""
        missing = [adapter_id for adapter_id in ids if self._residency.get(adapter_id) is None]
        refs: dict[str, AdapterRef] = {}
        if missing:
            note("adapters_loaded", tuple(missing))
        with self._catalogue.wanting(ids):
            begun = {adapter_id: self._catalogue.begin_load(adapter_id) for adapter_id in missing}
            for adapter_id in ids:
                resident = await self._catalogue.load(adapter_id, begun.get(adapter_id))
                held.enter_context(self._holding(resident, ended))
                refs[adapter_id] = resident.ref
        return refs

    @contextmanager
    def _holding(self, resident: Resident, ended: asyncio.Future[str]) -> Iterator[None]:
        adapter_id = resident.ref.adapter_id
        self._residency.lease(resident)
        self._leases.add(adapter_id, ended)
        self._catalogue.note_use(adapter_id)
        self._metrics.adapter_requests.add(adapter_id)
        try:
            yield
        finally:
            self._residency.release(resident)
            self._leases.remove(adapter_id, ended)
            self._catalogue.note_use(adapter_id)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

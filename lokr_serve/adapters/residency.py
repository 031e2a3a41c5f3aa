"""Residency: the adapters that are ready to use, within a budget of bytes."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from lokr_core import Adapted, Adapter, AdapterInUseError, AdapterRef
from lokr_core.spec import ModelSpec
from lokr_serve.adapters.expiry import ExpiryTimer
from lokr_serve.errors import AdapterBudgetError
from lokr_serve.metrics import Metrics

MAX_PINNED_SHARE = 0.9  # of the budget; the rest stays for what is loaded on demand


class LeaveReason(Enum):
    """Why an adapter leaves memory."""

    BUDGET = "budget"
    TTL = "ttl"
    UNLOAD = "unload"
    REPLACE = "replace"
    IDLE = "idle"  # for adapters.idle_seconds
    MEMORY = "memory"  # the device had none left for a load


@dataclass(slots=True, kw_only=True, eq=False)
class Resident:
    """One version of an adapter in memory; changed by Residency alone."""

    adapter: Adapter
    is_pinned: bool = False
    num_leases: int = 0
    leaving: LeaveReason | None = None  # set once it is no longer its id's current version

    @property
    def ref(self) -> AdapterRef:
        """The adapter version."""
        return self.adapter.ref

    @property
    def num_bytes(self) -> int:
        """Bytes of its factors."""
        return self.adapter.num_bytes


class Residency:
    """Adds adapters to the model and removes them; lives on the event loop.

    Each operation takes constant time: the adapters that may be evicted (neither leased nor
    pinned) are kept in the order of their last use.
    """

    def __init__(
        self, *, adapted: Adapted, budget_bytes: int, idle_seconds: float = 0.0, metrics: Metrics
    ) -> None:
        """Hold what is given, for the model that it was read for.

        Args:
            adapted: The model.
            budget_bytes: That adapters may take.
            idle_seconds: How long one that may be evicted stays after its last use; 0 is for ever.
            metrics: Told of what is here and what has left.
        """
        self._adapted = adapted
        self._budget_bytes = budget_bytes
        self._idle_seconds = idle_seconds
        self._idle_timer = ExpiryTimer(self._leave_idle)
        self._metrics = metrics
        self._current: OrderedDict[str, Resident] = OrderedDict()  # by id, last used last
        self._idle: OrderedDict[str, Resident] = OrderedDict()  # those that may be evicted
        self._leaving: dict[AdapterRef, Resident] = {}  # replaced or dropped while in use
        self._used_bytes = 0
        self._idle_bytes = 0
        self._pinned_bytes = 0
        for reason in LeaveReason:  # so that every series is there from the start
            metrics.adapter_evictions.labels(reason.value)
        metrics.adapter_free_bytes.labels("device").set_function(self._free_bytes)
        metrics.adapter_evictable_bytes.labels("device").set_function(lambda: self._idle_bytes)
        self._report()

    def __len__(self) -> int:
        """Count the ids that are in memory."""
        return len(self._current)

    @property
    def spec(self) -> ModelSpec:
        """The model that adapters are read for."""
        return self._adapted.spec

    def get(self, adapter_id: str) -> Resident | None:
        """Return the current version of an id, if it is in memory."""
        return self._current.get(adapter_id)

    def recent(self, limit: int) -> Sequence[str]:
        """Return ids that are in memory, the last used first."""
        return list(islice(reversed(self._current), limit))

    @property
    def capacity(self) -> int:
        """How many adapters of the present mean size the budget holds; 0 while it is unknown."""
        if not self._used_bytes:
            return 0
        num_resident = len(self._current) + len(self._leaving)
        return max(num_resident, self._budget_bytes * num_resident // self._used_bytes)

    def require_room(self, adapter_id: str, num_bytes: int) -> None:
        """Check that an id's adapter would fit beside what is leased or pinned.

        Raises:
            AdapterBudgetError: It would not.
        """
        current = self._current.get(adapter_id)
        freed_bytes = self._idle_bytes + self._lingering_bytes
        if current is not None and current.is_pinned and not current.num_leases:
            freed_bytes += current.num_bytes  # it makes way for its own next version
        if self._used_bytes - freed_bytes + num_bytes > self._budget_bytes:
            raise AdapterBudgetError(
                f"adapter {adapter_id!r}",
                needed_bytes=num_bytes,
                budget_bytes=self._budget_bytes,
                tier="device",
            )

    def publish(self, adapter: Adapter, *, pinned: bool) -> Resident:
        """Make an adapter the current version of its id, in one step; room is made for it first.

        Raises:
            AdapterBudgetError: There is no room beside what is leased or pinned, or pins would
                take too much; nothing has changed.
        """
        self._sweep()
        adapter_id = adapter.ref.adapter_id
        if pinned:
            self._require_pinnable(adapter_id, adapter.num_bytes)
        current = self._current.get(adapter_id)
        if current is None or current.ref != adapter.ref:
            known = self._leaving.get(adapter.ref)
            is_leased = known is not None and known.num_leases > 0
            needed_bytes = 0 if is_leased else adapter.num_bytes
            self.require_room(adapter_id, needed_bytes)
            self._adapted.add(adapter)
            self.drop(adapter_id, LeaveReason.REPLACE)
            self._evict(needed_bytes)
            current = self._enter(adapter)
        self._set_pinned(current, pinned)
        return current

    def lease(self, resident: Resident) -> None:
        """Keep a current version in memory until it is released; it counts as used now."""
        assert resident.leaving is None
        self._sweep()
        resident.num_leases += 1
        self._current.move_to_end(resident.ref.adapter_id)
        self._settle(resident)

    def release(self, resident: Resident) -> None:
        """Give a lease back; an old version is freed with its last one."""
        resident.num_leases -= 1
        if resident.leaving is None:
            self._settle(resident)
        else:
            self._free(resident)

    def set_pinned(self, adapter_id: str, pinned: bool) -> None:
        """Keep a resident adapter from eviction, or allow it again.

        Raises:
            AdapterBudgetError: Pins would take too much of the budget.
        """
        resident = self._current[adapter_id]
        if pinned:
            self._require_pinnable(adapter_id, resident.num_bytes)
        self._set_pinned(resident, pinned)

    def drop(self, adapter_id: str, reason: LeaveReason) -> int:
        """Take an id's version out of use; it is freed now, or with its last lease.

        Returns:
            Its bytes; 0 if none is in memory.
        """
        resident = self._current.get(adapter_id)
        if resident is None:
            return 0
        self._retire(resident, reason)
        return resident.num_bytes

    def make_way(self) -> None:
        """Give back what nobody uses, as the device has no memory left: adapters and merges."""
        for resident in list(self._idle.values()):
            self._retire(resident, LeaveReason.MEMORY)
        self._adapted.merges.discard_idle()
        self._report()

    def close(self) -> None:
        """Stop the timer."""
        self._idle_timer.close()

    @property
    def _lingering_bytes(self) -> int:
        """Bytes of what no lease holds but a running forward does; it goes at the next sweep."""
        return sum(old.num_bytes for old in self._leaving.values() if not old.num_leases)

    def _free_bytes(self) -> int:
        """What of the budget nothing takes; versions on their way out may take more than it."""
        return max(self._budget_bytes - self._used_bytes, 0)

    def _require_pinnable(self, adapter_id: str, num_bytes: int) -> None:
        current = self._current.get(adapter_id)
        pinned_bytes = self._pinned_bytes + num_bytes
        if current is not None and current.is_pinned:
            pinned_bytes -= current.num_bytes
        max_pinned_bytes = int(MAX_PINNED_SHARE * self._budget_bytes)
        if pinned_bytes > max_pinned_bytes:
            raise AdapterBudgetError(
                f"the pin of adapter {adapter_id!r}",
                needed_bytes=num_bytes,
                budget_bytes=max_pinned_bytes,
                tier="device",
            )

    def _set_pinned(self, resident: Resident, pinned: bool) -> None:
        self._pinned_bytes += (pinned - resident.is_pinned) * resident.num_bytes
        resident.is_pinned = pinned
        self._settle(resident)

    def _settle(self, resident: Resident) -> None:
        """List a current version as idle, most recent last, exactly if it may be evicted."""
        adapter_id = resident.ref.adapter_id
        if self._idle.pop(adapter_id, None) is not None:
            self._idle_bytes -= resident.num_bytes
        self._idle_timer.discard(adapter_id)
        if not (resident.num_leases or resident.is_pinned):
            self._idle[adapter_id] = resident
            self._idle_bytes += resident.num_bytes
            if self._idle_seconds:
                now = asyncio.get_running_loop().time()
                self._idle_timer.set(adapter_id, now + self._idle_seconds)

    def _leave_idle(self, adapter_id: str) -> None:
        self._retire(self._idle[adapter_id], LeaveReason.IDLE)

    def _evict(self, needed_bytes: int) -> None:
        while self._used_bytes - self._lingering_bytes + needed_bytes > self._budget_bytes:
            self._retire(next(iter(self._idle.values())), LeaveReason.BUDGET)

    def _enter(self, adapter: Adapter) -> Resident:
        """Note a new version, or bring one back that was on its way out."""
        resident = self._leaving.pop(adapter.ref, None)
        if resident is None:
            resident = Resident(adapter=adapter)
            self._used_bytes += adapter.num_bytes
        resident.leaving = None
        self._current[adapter.ref.adapter_id] = resident
        self._report()
        return resident

    def _retire(self, resident: Resident, reason: LeaveReason) -> None:
        adapter_id = resident.ref.adapter_id
        del self._current[adapter_id]
        self._idle_timer.discard(adapter_id)
        if self._idle.pop(adapter_id, None) is not None:
            self._idle_bytes -= resident.num_bytes
        if resident.is_pinned:
            self._pinned_bytes -= resident.num_bytes
            resident.is_pinned = False
        resident.leaving = reason
        self._leaving[resident.ref] = resident
        self._report()
        self._free(resident)

    def _free(self, resident: Resident) -> None:
        """Remove a version that has left from the model, unless something still uses it."""
        if resident.num_leases:
            return
        try:
            self._adapted.remove(resident.ref)
        except AdapterInUseError:  # a step still runs rows of a request that has gone
            return
        del self._leaving[resident.ref]
        self._used_bytes -= resident.num_bytes
        assert resident.leaving is not None
        self._metrics.adapter_evictions.labels(resident.leaving.value).inc()
        self._report()

    def _sweep(self) -> None:
        for resident in list(self._leaving.values()):
            self._free(resident)

    def _report(self) -> None:
        self._metrics.adapters_resident.labels("device").set(len(self._current))
        self._metrics.adapter_bytes.labels("device").set(self._used_bytes)
        self._metrics.merge_cache_bytes.set(self._adapted.merges.num_bytes)

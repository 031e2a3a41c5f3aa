"""MergeCache: merged weights by mix, bounded in bytes; un-merging is dropping an entry."""

import threading
from collections import Counter, OrderedDict

from lokr_core.errors import MergeBudgetError, MergeError
from lokr_core.merge import MergedMix
from lokr_core.mix import AdapterMix, AdapterRef


class MergeCache:
    """Merged mixes, least recently used first; an entry that is leased is never evicted."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[AdapterMix, MergedMix] = OrderedDict()
        self._leases: Counter[AdapterMix] = Counter()
        self._num_bytes = 0
        self.num_drops = 0  # entries dropped so far
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._num_bytes

    def __contains__(self, mix: AdapterMix) -> bool:
        """Whether the mix is merged."""
        return mix in self._entries

    def get(self, mix: AdapterMix) -> MergedMix:
        """Return an entry that the caller has leased.

        Raises:
            MergeError: It is not here, so the caller has no lease.
        """
        merged = self._entries.get(mix)
        if merged is None:
            raise MergeError(f"mix {mix.name!r} is not merged; acquire it or put it first")
        return merged

    def acquire(self, mix: AdapterMix) -> bool:
        """Lease an entry if it is there, and say whether it was."""
        with self._lock:
            if mix not in self._entries:
                return False
            self._entries.move_to_end(mix)
            self._leases[mix] += 1
            return True

    def release(self, mix: AdapterMix) -> None:
        """Give one lease back."""
        with self._lock:
            assert self._leases[mix] > 0, f"{mix.name} was not leased"
            self._leases[mix] -= 1
            if not self._leases[mix]:
                del self._leases[mix]

    def put(self, mix: AdapterMix, merged: MergedMix) -> None:
        """Insert an entry, lease it, and evict what was used least recently to make room.

        Raises:
            MergeBudgetError: It does not fit beside the entries that are leased.
        """
        with self._lock:
            if mix not in self._entries:
                self._make_room(mix, merged.num_bytes)
                self._entries[mix] = merged
                self._num_bytes += merged.num_bytes
            self._entries.move_to_end(mix)
            self._leases[mix] += 1

    def discard_adapter(self, ref: AdapterRef) -> None:
        """Drop the entries that contain an adapter, except those that are leased."""
        with self._lock:
            for mix in [mix for mix in self._entries if _contains(mix, ref)]:
                if mix not in self._leases:
                    self._drop(mix)

    def discard_idle(self) -> int:
        """Drop every entry that is not leased, and return their bytes."""
        with self._lock:
            before = self._num_bytes
            for mix in [mix for mix in self._entries if mix not in self._leases]:
                self._drop(mix)
            return before - self._num_bytes

    def _make_room(self, mix: AdapterMix, needed_bytes: int) -> None:
        leased_bytes = sum(self._entries[held].num_bytes for held in self._leases)
        if leased_bytes + needed_bytes > self.max_bytes:
            raise MergeBudgetError(
                f"merging {mix.name!r} takes {needed_bytes} bytes, but {leased_bytes} of the "
                f"merge cache's {self.max_bytes} bytes are in use; serve it unmerged"
            )
        for idle in [held for held in self._entries if held not in self._leases]:
            if self._num_bytes + needed_bytes <= self.max_bytes:
                return
            self._drop(idle)

    def _drop(self, mix: AdapterMix) -> None:
        self._num_bytes -= self._entries.pop(mix).num_bytes
        self.num_drops += 1


def _contains(mix: AdapterMix, ref: AdapterRef) -> bool:
    return any(part.ref == ref for part in mix.parts)

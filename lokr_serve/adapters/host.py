"""HostTier: copies in host memory of adapters that are used on another device."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

from lokr_core import Adapter
from lokr_serve.adapters.request import LoadRequest
from lokr_serve.adapters.store import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostCopy:
    """What was read on a request, and from which state of the files."""

    adapter: Adapter
    request: LoadRequest
    fingerprint: Fingerprint


class HostTier:
    """One copy for each id, least recently used first out; may be used by several threads.

    It spares a read, no more: a copy that does not fit is simply not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._copies: OrderedDict[str, HostCopy] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of all copies."""
        return self._num_bytes

    @property
    def free_bytes(self) -> int:
        """What of the budget nothing takes."""
        return self._max_bytes - self._num_bytes

    def __len__(self) -> int:
        """Count the copies."""
        return len(self._copies)

    def bytes_of(self, adapter_id: str) -> int:
        """Return the bytes of the copy of an id, 0 without one."""
        copy = self._copies.get(adapter_id)
        return 0 if copy is None else copy.adapter.num_bytes

    def get(self, request: LoadRequest, state: Fingerprint) -> Adapter | None:
        """Return what this request would read from files in this state, if it was kept."""
        with self._lock:
            copy = self._copies.get(request.adapter_id)
            if copy is None or copy.request != request or copy.fingerprint != state:
                return None
            self._copies.move_to_end(request.adapter_id)
            return copy.adapter

    def put(self, copy: HostCopy) -> None:
        """Keep a copy in the place of the id's older one, if it fits at all."""
        with self._lock:
            self._drop(copy.request.adapter_id)
            if copy.adapter.num_bytes > self._max_bytes:
                return
            while self._num_bytes + copy.adapter.num_bytes > self._max_bytes:
                _, oldest = self._copies.popitem(last=False)
                self._num_bytes -= oldest.adapter.num_bytes
            self._copies[copy.request.adapter_id] = copy
            self._num_bytes += copy.adapter.num_bytes

    def discard(self, adapter_id: str) -> None:
        """Drop the copy of an id, if there is one."""
        with self._lock:
            self._drop(adapter_id)

    def _drop(self, adapter_id: str) -> None:
        """Drop a copy, under the lock."""
        copy = self._copies.pop(adapter_id, None)
        if copy is not None:
            self._num_bytes -= copy.adapter.num_bytes


def pin(adapter: Adapter) -> Adapter:
    """Return an adapter whose buffer a CUDA device can fetch in one transfer."""
    if not torch.cuda.is_available():
        return adapter
    return replace(adapter, buffer=adapter.buffer.pin_memory())

"""MixMerger: decides how a mix is applied, and sees to it that merged weights are there."""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from lokr_core import (
    Adapted,
    AdapterMix,
    AdapterNotAddedError,
    AdapterRef,
    Apply,
    LossyMergeError,
    MergeBudgetError,
    MergedMix,
    MergeError,
)
from lokr_serve.adapters.leasing import build_mix
from lokr_serve.adapters.policy import (
    CPU_MACS_PER_BYTE,
    CUDA_MACS_PER_BYTE,
    Traffic,
    TrafficCounter,
    Workload,
    is_worth_merging,
    row_gain,
)
from lokr_serve.adapters.workers import SharedCalls, Workers, join
from lokr_serve.calls import phase
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import AdapterBudgetError, DeviceMemoryError
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterWeight, ApplyMode

logger = logging.getLogger(__name__)

MAX_MIXES = 4096  # whose traffic, cost and refusals are remembered
NO_ROOM_SECONDS = 60.0  # before auto merges a mix again that did not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """Why auto leaves a mix unmerged for a while."""

    until: float
    rounding_loss: float | None = None


class MixMerger:
    """Resolves how each request is applied; lives on the event loop, merges in the workers.

    Auto never makes a request wait: a mix that is worth merging is merged in the background and
    the request goes unmerged; later ones find it merged.
    """

    def __init__(
        self, *, adapted: Adapted, workers: Workers, settings: AdapterSettings, metrics: Metrics
    ) -> None:
        self._adapted = adapted
        self._merges = adapted.merges
        self._settings = settings
        self._metrics = metrics
        self._calls: SharedCalls[AdapterMix, MergedMix] = SharedCalls(workers)
        self._traffic = TrafficCounter(MAX_MIXES)
        self._refusals: OrderedDict[AdapterMix, _Refusal] = OrderedDict()
        self._cost = lru_cache(MAX_MIXES)(adapted.cost)
        on_cpu = next(iter(adapted.spec.modules.values())).weight.device.type == "cpu"
        self._macs_per_byte = CPU_MACS_PER_BYTE if on_cpu else CUDA_MACS_PER_BYTE

    def build(self, parts: Sequence[AdapterWeight], refs: Mapping[str, AdapterRef]) -> AdapterMix:
        """Return the mix of these parts, as :func:`build_mix` does."""
        return build_mix(parts, refs, self._adapted)

    async def acquire(
        self,
        mix: AdapterMix,
        mode: ApplyMode,
        *,
        num_running: int,
        workload: Workload | None = None,
    ) -> Apply:
        """Return how to apply a mix, whose adapters the caller holds, to a request's work.

        If it is MERGED, the merged weights are leased until :meth:`release`. The base model has
        nothing to merge and is always UNMERGED.

        Raises:
            LossyMergeError: Merged is asked for, and rounding would take too much of the change.
            AdapterBudgetError: Merged is asked for, and the merge cache has no room.
            DeviceMemoryError: Merged is asked for, and the device has no memory left.
        """
        now = time.monotonic()
        traffic = self._traffic.count(mix, now=now, num_running=num_running, workload=workload)
        if mix.is_base or mode is ApplyMode.UNMERGED:
            return Apply.UNMERGED
        if mode is ApplyMode.AUTO:
            return self._choose(mix, traffic)
        await self._acquire_merged(mix)
        return Apply.MERGED

    def release(self, mix: AdapterMix) -> None:
        """Give the lease of merged weights back."""
        self._merges.release(mix)

    def _choose(self, mix: AdapterMix, traffic: Traffic) -> Apply:
        cost = self._cost(mix)
        if self._is_refused(mix) or row_gain(cost, traffic, self._macs_per_byte) <= 0:
            return Apply.UNMERGED
        if self._acquire_if_there(mix):
            return Apply.MERGED
        has_room = cost.merged_bytes <= self._merges.max_bytes
        if has_room and is_worth_merging(cost, traffic, self._macs_per_byte):
            self._merge_in_background(mix)
        return Apply.UNMERGED

    async def _acquire_merged(self, mix: AdapterMix) -> None:
        self._require_allowed(mix)
        if self._acquire_if_there(mix):
            return
        needed_bytes = self._cost(mix).merged_bytes
        if needed_bytes > self._merges.max_bytes:
            raise self._no_room(mix, needed_bytes)
        with phase("merge"):
            merged = await join(self._start(mix))
        self._note_loss(mix, merged)
        self._require_allowed(mix)
        self._put(mix, merged)

    def _acquire_if_there(self, mix: AdapterMix) -> bool:
        is_there = self._merges.acquire(mix)
        if is_there:
            self._metrics.merge_cache_hits.inc()
        return is_there

    def _start(self, mix: AdapterMix) -> asyncio.Future[MergedMix]:
        return self._calls.start(mix, lambda: self._merge(mix))

    def _merge(self, mix: AdapterMix) -> MergedMix:
        """Merge in a worker thread, once for all who wait; caches make way if it must be."""
        merged = self._merge_if_it_fits(mix)
        if merged is None:
            self._adapted.give_back_memory()
            merged = self._merge_if_it_fits(mix)
        if merged is None:
            raise DeviceMemoryError(
                f"mix {mix.name!r} merged",
                remedy="request it unmerged, or start the server with a smaller "
                "adapters.merge_cache_bytes",
            )
        self._metrics.merges.inc()
        self._metrics.merge_rounding_loss.observe(merged.rounding_loss)
        return merged

    def _merge_if_it_fits(self, mix: AdapterMix) -> MergedMix | None:
        """Merge, unless the device has no memory left; what was begun is free afterwards."""
        try:
            return self._adapted.merge(mix)
        except torch.OutOfMemoryError:
            return None

    def _put(self, mix: AdapterMix, merged: MergedMix) -> None:
        """Keep merged weights and lease them."""
        try:
            self._merges.put(mix, merged)
        except MergeBudgetError as error:
            raise self._no_room(mix, merged.num_bytes) from error
        self._metrics.merge_cache_bytes.set(self._merges.num_bytes)

    def _no_room(self, mix: AdapterMix, needed_bytes: int) -> AdapterBudgetError:
        return AdapterBudgetError(
            f"mix {mix.name!r} merged",
            needed_bytes=needed_bytes,
            budget_bytes=self._merges.max_bytes,
            tier="merge cache",
        )

    def _merge_in_background(self, mix: AdapterMix) -> None:
        if mix not in self._calls:
            self._start(mix).add_done_callback(lambda call: self._keep_unleased(mix, call))

    def _keep_unleased(self, mix: AdapterMix, call: asyncio.Future[MergedMix]) -> None:
        """Keep what was merged in the background; what cannot be kept is left alone for a while."""
        if call.cancelled():
            return
        try:
            merged = call.result()
            self._adapted.check(mix)
            self._note_loss(mix, merged)
            if not self._is_refused(mix):
                self._put(mix, merged)
                self._merges.release(mix)
        except AdapterNotAddedError:
            logger.debug("mix %r was merged too late: its adapters are gone", mix.name)
        except (AdapterBudgetError, DeviceMemoryError) as error:
            logger.warning("not merged for now: %s", error)
            self._refuse(mix, _Refusal(until=time.monotonic() + NO_ROOM_SECONDS))
        except MergeError as error:
            logger.warning("mix %r cannot be merged and stays unmerged: %s", mix.name, error)
            self._refuse(mix, _Refusal(until=math.inf))
        except Exception:  # the edge of a background call: nobody else sees what it raised
            logger.exception("mix %r cannot be merged; it stays unmerged", mix.name)
            self._refuse(mix, _Refusal(until=math.inf))

    def _note_loss(self, mix: AdapterMix, merged: MergedMix) -> None:
        if merged.rounding_loss > self._settings.max_rounding_loss:
            self._refuse(mix, _Refusal(until=math.inf, rounding_loss=merged.rounding_loss))

    def _require_allowed(self, mix: AdapterMix) -> None:
        refusal = self._refusals.get(mix)
        if refusal is None or refusal.rounding_loss is None or self._settings.allow_lossy_merge:
            return
        raise LossyMergeError(
            f"merging {mix.name!r} would lose {refusal.rounding_loss:.1%} of its change to "
            f"rounding in the base's dtype, more than the limit of "
            f"{self._settings.max_rounding_loss:.1%}; request it unmerged, or start the server "
            "with allow_lossy_merge"
        )

    def _is_refused(self, mix: AdapterMix) -> bool:
        refusal = self._refusals.get(mix)
        return refusal is not None and time.monotonic() < refusal.until

    def _refuse(self, mix: AdapterMix, refusal: _Refusal) -> None:
        self._refusals[mix] = refusal
        self._refusals.move_to_end(mix)
        if len(self._refusals) > MAX_MIXES:
            self._refusals.popitem(last=False)

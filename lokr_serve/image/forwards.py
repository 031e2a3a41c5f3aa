"""Forwards: calls that may join run as one, and where it fails, apart."""

import logging
import time
from collections.abc import Sequence
from enum import Enum, auto

import torch

from lokr_core import Adapted, AdapterMix, Apply
from lokr_serve.image.gather import Gathering, PendingCall
from lokr_serve.image.joining import join, split
from lokr_serve.metrics import Metrics

logger = logging.getLogger(__name__)


class _Outcome(Enum):
    """How a batch of calls has run."""

    ENDED = auto()  # each call has its output, or the error that it met alone
    FAILED = auto()
    OUT_OF_MEMORY = auto()


class Forwards:
    """Runs batches of calls; lives on the engine's thread."""

    def __init__(
        self, *, adapted: Adapted, gathering: Gathering, metrics: Metrics, denoiser: str
    ) -> None:
        self._adapted = adapted
        self._gathering = gathering
        self._metrics = metrics
        self._denoiser = denoiser

    def run(self, batch: Sequence[PendingCall]) -> None:
        """Run a batch and hand its rows back; a batch that fails runs again in halves.

        So only a call that cannot run even alone fails. Before what lacks memory runs again,
        caches give theirs back; a call that was alone is tried once more for that.

        Raises:
            torch.AcceleratorError: The device has failed for good.
        """
        outcome = self._try(batch, is_last_try=False)
        if outcome is _Outcome.ENDED:
            return
        if outcome is _Outcome.OUT_OF_MEMORY:
            self._adapted.give_back_memory()
            self._metrics.merge_cache_bytes.set(self._adapted.merges.num_bytes)
        if len(batch) == 1:
            self._try(batch, is_last_try=True)
            return
        middle = len(batch) // 2
        self.run(batch[:middle])
        self.run(batch[middle:])

    def _try(self, batch: Sequence[PendingCall], *, is_last_try: bool) -> _Outcome:
        """Run a batch; what a forward that failed held is free afterwards."""
        began_at = time.monotonic()
        try:
            outputs = self._outputs(batch)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._metrics.step_failures.inc()
            wants_memory = isinstance(error, torch.OutOfMemoryError)
            if len(batch) == 1 and (is_last_try or not wants_memory):
                self._gathering.fail(batch[0], error)
                return _Outcome.ENDED
            logger.exception("%d calls of %s failed together", len(batch), batch[0].call.name)
            return _Outcome.OUT_OF_MEMORY if wants_memory else _Outcome.FAILED
        self._observe(batch, began_at)
        for pending, output in zip(batch, outputs, strict=True):
            self._gathering.hand_back(pending, output)
        return _Outcome.ENDED

    def _outputs(self, batch: Sequence[PendingCall]) -> list[object]:
        first = batch[0].call
        if len(batch) == 1:
            with self._adapted.route_samples([_sample(batch[0])]), torch.no_grad():
                return [first.function(**first.arguments)]
        calls = [pending.call for pending in batch]
        num_rows = [call.num_rows for call in calls]
        samples = [_sample(pending) for pending in batch for _ in range(pending.num_rows)]
        with self._adapted.route_samples(samples, rows="interleave"), torch.no_grad():
            output = first.function(**join(calls))
        return split(first.name, output, num_rows)

    def _observe(self, batch: Sequence[PendingCall], began_at: float) -> None:
        """Count a forward that has ended; only the denoiser's are steps."""
        metrics, ended_at = self._metrics, time.monotonic()
        for pending in batch:
            metrics.gather_seconds.observe(began_at - pending.arrived_at)
        if batch[0].call.name != self._denoiser:
            return
        metrics.step_seconds.observe(ended_at - began_at)
        metrics.step_rows.observe(sum(pending.num_rows for pending in batch))
        metrics.step_mixes.observe(len({pending.mix for pending in batch}))
        for pending in batch:
            _, apply = _sample(pending)
            metrics.rows.labels(apply.value).inc(pending.num_rows)


def _sample(pending: PendingCall) -> tuple[AdapterMix, Apply]:
    return pending.mix, Apply.UNMERGED if pending.mix.is_base else pending.apply

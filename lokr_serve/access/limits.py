"""Limits: what each client, and each adapter, may have of the server at the same time."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lokr_serve.access.ledger import Allowance, Ledger
from lokr_serve.access.waiting_room import ShedReason
from lokr_serve.config import LimitSettings
from lokr_serve.errors import LimitExceededError, QueueFullError
from lokr_serve.metrics import Metrics
from lokr_serve.types import Caller


class Limits:
    """Counts the requests of one queue by client and by adapter; lives on the event loop.

    A request for a mix counts for each of its adapters. What is counted is given back on every
    way out, but for the token of the rate.
    """

    def __init__(
        self,
        settings: LimitSettings,
        *,
        max_queue: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._max_queue = max_queue
        self._metrics = metrics
        self._clients = Ledger("client", clock)
        self._adapters = Ledger("adapter", clock)
        self._adapter_allowance = Allowance(
            max_requests=settings.adapter_requests,
            rate=settings.adapter_rate,
            max_waiting=_places(settings.adapter_queue_share, max_queue),
        )

    @property
    def num_names(self) -> int:
        """How many clients and adapters are remembered."""
        return len(self._clients) + len(self._adapters)

    def check(self, caller: Caller, adapter_ids: Sequence[str]) -> None:
        """Check that one more request is within the limits; nothing is counted.

        Args:
            caller: Who makes it.
            adapter_ids: Registered ids that it names, each once.

        Raises:
            LimitExceededError: The client, or an adapter, has what it may have already.
        """
        try:
            for ledger, name, allowed in self._counts(caller, adapter_ids):
                ledger.check(name, allowed)
        except LimitExceededError:
            self._metrics.requests_shed.labels(ShedReason.LIMIT.value).inc()
            raise

    @contextmanager
    def counting(self, caller: Caller, adapter_ids: Sequence[str]) -> Iterator[Callable[[], None]]:
        """Count a request that has just passed the check, until the block ends.

        What is given notes that the request waits no more. One for which there was no place after
        all has used up nothing of a rate.
        """
        counts = tuple(self._counts(caller, adapter_ids))
        with ExitStack() as ends, ExitStack() as waits:
            for ledger, name, allowed in counts:
                ledger.begin(name, allowed)
                ends.callback(ledger.end, name)
                waits.callback(ledger.admit, name)
            try:
                yield waits.close
            except QueueFullError:
                for ledger, name, allowed in counts:
                    ledger.refund(name, allowed)
                raise

    def _allowance_of(self, caller: Caller) -> Allowance:
        settings, own = self._settings, caller.limits
        share = settings.client_queue_share if own.queue_share is None else own.queue_share
        most = settings.client_requests if own.max_requests is None else own.max_requests
        return Allowance(
            max_requests=most,
            rate=settings.client_rate if own.rate is None else own.rate,
            max_waiting=_places(share, self._max_queue),
        )

    def _counts(
        self, caller: Caller, adapter_ids: Iterable[str]
    ) -> Iterator[tuple[Ledger, str, Allowance]]:
        """Yield whose counts a request is one of, and what they may be."""
        yield self._clients, caller.name, self._allowance_of(caller)
        for adapter_id in adapter_ids:
            yield self._adapters, adapter_id, self._adapter_allowance


def _places(share: float, max_queue: int) -> int | None:
    """Return the places of a share of the queue, 1 at least; the whole queue is no limit."""
    return None if share == 1 else max(1, int(share * max_queue))

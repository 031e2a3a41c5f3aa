"""Limits: what each client, and each adapter, may have of the server at the same time."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from lokr_serve.access.ledger import Allowance, Ledger
from lokr_serve.access.waiting_room import ShedReason
from lokr_serve.config import LimitSettings
from lokr_serve.errors import LimitExceededError
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

    @contextmanager
    def counting(self, caller: Caller, adapter_ids: Sequence[str]) -> Iterator[Callable[[], None]]:
        """Count a request until the block ends; what is given notes that it waits no more.

        Args:
            caller: Who makes it.
            adapter_ids: Registered ids that it names, each once.

        Raises:
            LimitExceededError: The client, or an adapter, has what it may have already.
        """
        own = self._allowance_of(caller)
        counts = [(self._clients, caller.name, own)]
        counts += [(self._adapters, name, self._adapter_allowance) for name in adapter_ids]
        self._check(counts)
        with ExitStack() as ends, ExitStack() as waits:
            for ledger, name, allowed in counts:
                ledger.begin(name, allowed)
                ends.callback(ledger.end, name)
                waits.callback(ledger.admit, name)
            yield waits.close

    def _allowance_of(self, caller: Caller) -> Allowance:
        settings, own = self._settings, caller.limits
        share = settings.client_queue_share if own.queue_share is None else own.queue_share
        most = settings.client_requests if own.max_requests is None else own.max_requests
        return Allowance(
            max_requests=most,
            rate=settings.client_rate if own.rate is None else own.rate,
            max_waiting=_places(share, self._max_queue),
        )

    def _check(self, counts: Iterable[tuple[Ledger, str, Allowance]]) -> None:
        try:
            for ledger, name, allowed in counts:
                ledger.check(name, allowed)
        except LimitExceededError:
            self._metrics.requests_shed.labels(ShedReason.LIMIT.value).inc()
            raise


def _places(share: float, max_queue: int) -> int | None:
    """Return the places of a share of the queue, 1 at least; the whole queue is no limit."""
    return None if share == 1 else max(1, int(share * max_queue))

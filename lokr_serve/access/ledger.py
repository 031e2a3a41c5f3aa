"""Ledger: what each client, or each adapter, has of what it may have."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from lokr_serve.access.pace import Pace, jittered
from lokr_serve.errors import LimitExceededError


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one client, or adapter, may have; None is no limit."""

    max_requests: int | None  # at the same time
    rate: float | None  # requests a second, in bursts of up to as many, and of 1 at least
    max_waiting: int | None


@dataclass(slots=True, kw_only=True)
class _Account:
    """What one has now."""

    num_requests: int = 0
    num_waiting: int = 0
    paid_until: float = -math.inf  # each request pays for 1 / rate seconds more


class Ledger:
    """Counts requests by name; a name that has none, and whose rate is fresh, is forgotten.

    The rate is a bucket of tokens, kept as the one time at which it will be full again. Lives on
    the event loop.
    """

    def __init__(self, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Count for names of one kind.

        Args:
            kind: What a name is the name of, as errors say it.
            clock: Tells the time in seconds.
        """
        self._kind = kind
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._resting: OrderedDict[str, None] = OrderedDict()  # without requests, longest first
        self._num_requests = 0
        self._num_waiting = 0
        self._ends = Pace(clock)
        self._starts = Pace(clock)

    def __len__(self) -> int:
        """Count the names that are remembered."""
        return len(self._accounts)

    def check(self, name: str, allowance: Allowance) -> None:
        """Check that one more request of a name is within its limits; nothing is counted.

        Raises:
            LimitExceededError: It is not.
        """
        account = self._accounts.get(name, _Account())
        if allowance.max_requests is not None and account.num_requests >= allowance.max_requests:
            num_others = self._num_requests / account.num_requests
            problem = f"has as many requests as it may, {account.num_requests}"
            raise self._exceeded(name, problem, self._ends.seconds(num_others))
        if allowance.max_waiting is not None and account.num_waiting >= allowance.max_waiting:
            num_others = self._num_waiting / account.num_waiting
            problem = f"has its share of the queue, {account.num_waiting} waiting"
            raise self._exceeded(name, problem, self._starts.seconds(num_others))
        if allowance.rate is not None and (wait := self._seconds_to_token(account, allowance.rate)):
            problem = f"may make {allowance.rate:g} requests a second"
            raise self._exceeded(name, problem, jittered(wait))

    def begin(self, name: str, allowance: Allowance) -> None:
        """Count a request that passed :meth:`check`; it waits."""
        self._forget_rested()
        account = self._accounts.setdefault(name, _Account())
        self._resting.pop(name, None)
        account.num_requests += 1
        account.num_waiting += 1
        self._num_requests += 1
        self._num_waiting += 1
        if allowance.rate is not None:
            account.paid_until = max(account.paid_until, self._clock()) + 1 / allowance.rate

    def refund(self, name: str, allowance: Allowance) -> None:
        """Give back what a request that is counted has taken of a name's rate."""
        if allowance.rate is not None:
            self._accounts[name].paid_until -= 1 / allowance.rate

    def admit(self, name: str) -> None:
        """Note that one of a name's requests waits no more."""
        self._accounts[name].num_waiting -= 1
        self._num_waiting -= 1
        self._starts.note()

    def end(self, name: str) -> None:
        """Note that one of a name's requests, which waits no more, has ended."""
        account = self._accounts[name]
        account.num_requests -= 1
        self._num_requests -= 1
        self._ends.note()
        if not account.num_requests:
            self._resting[name] = None
            self._forget_rested()

    def _seconds_to_token(self, account: _Account, rate: float) -> float:
        """Return how long the next token is away; 0 if there is one."""
        now = self._clock()
        owed = max(account.paid_until - now, 0.0) + 1 / rate
        wait = owed - max(rate, 1.0) / rate
        return wait if wait > 1e-9 else 0.0  # seconds; less is rounding

    def _forget_rested(self) -> None:
        """Forget names without requests whose tokens are all back; in the order of their ends."""
        now = self._clock()
        while self._resting:
            name = next(iter(self._resting))
            if self._accounts[name].paid_until > now:
                return
            del self._resting[name], self._accounts[name]

    def _exceeded(self, name: str, problem: str, retry_seconds: float) -> LimitExceededError:
        subject = f"{self._kind} {name!r}" if name else f"every {self._kind} without a name"
        return LimitExceededError(subject, problem, retry_seconds)

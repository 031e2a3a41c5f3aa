"""Round: a stretch of chaos in one life of the server, between two quiet moments."""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import grpc

from lokr_serve.client import ClientError
from tests.chaos.cast import NAMED
from tests.chaos.declarations import Declarations
from tests.chaos.ledger import Ledger
from tests.chaos.outcomes import is_explained, status_of
from tests.chaos.place import ARCHITECTURE, KINDS, Place
from tests.chaos.proxy import Proxy
from tests.chaos.server import Life
from tests.chaos.shelf import Shelf
from tests.chaos.truth import Truth
from tests.oracle.traffic import PlannedRequest, Traffic

LEFT = "left by us"
MAX_MOMENT_SECONDS = 2.0
MAX_LATE_SECONDS = 0.02


class Scene:
    """What outlives every process of a run."""

    def __init__(self, place: Place, proxy: Proxy, seed: int) -> None:
        self.place = place
        self.proxy = proxy
        self.declarations = Declarations(place)
        self.ledger = Ledger()
        self.shelf = Shelf(place.lasting)
        self.truth = Truth(place.peers, place.contents)
        self.draws = random.Random(seed)
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by adapter id
        writer = ARCHITECTURE.adapters[KINDS[0]]  # of files that are there: traffic asks for ids
        ids = [*NAMED, *place.lasting]
        self._traffic = Traffic(replace(ARCHITECTURE, adapters=dict.fromkeys(ids, writer)), seed)
        self._numbers = itertools.count()

    def next_request(self) -> PlannedRequest:
        """Return another random request."""
        return self._traffic.request(next(self._numbers))


@dataclass(slots=True, kw_only=True)
class Call:
    """A call that was made."""

    error: ClientError | None = None
    is_left: bool = False  # set by the caller, who did not wait for the end
    is_ok: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Round:
    """What the actors of one round share."""

    scene: Scene
    life: Life
    draws: random.Random
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _begun: defaultdict[str, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event)
    )

    async def pause(self, mean_seconds: float) -> None:
        """Wait for a random time, or until the round is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.draws.expovariate(1 / mean_seconds)):
                await self.over.wait()

    async def moment_of(self, operation: str) -> None:
        """Wait until a call of some kind has just begun; not for long, if none does."""
        begun = self._begun[operation]
        begun.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(MAX_MOMENT_SECONDS):
                await begun.wait()
        await asyncio.sleep(self.draws.uniform(0, MAX_LATE_SECONDS))

    @contextmanager
    def calling(self, operation: str, about: str = "", *, is_hasty: bool = False) -> Iterator[Call]:
        """Count how the call in the block ends; a failure is swallowed, and held against the rules.

        Args:
            operation: What the ledger calls it.
            about: What else is to be said of a failure.
            is_hasty: Whether its deadline is meant to pass now and then.
        """
        call, ledger = Call(), self.scene.ledger
        self._begun[operation].set()
        try:
            yield call
        except ClientError as error:
            call.error = error
            ledger.count(operation, status_of(error))
            if not is_explained(operation, error, self.life, is_hasty=is_hasty):
                kind = f"{operation}: {status_of(error)}"
                ledger.violate(kind, f"life {self.life.number}: {about}: {error}{_origin(error)}")
        except asyncio.CancelledError:
            ledger.count(operation, LEFT)
            raise
        else:
            call.is_ok = not call.is_left
            ledger.count(operation, "OK" if call.is_ok else LEFT)


def _origin(error: ClientError) -> str:
    """Return what the transport tells of an error that has no reason of the server's."""
    cause = error.__cause__
    if error.reason or not isinstance(cause, grpc.aio.AioRpcError):
        return ""
    return f" ({cause.debug_error_string()})"

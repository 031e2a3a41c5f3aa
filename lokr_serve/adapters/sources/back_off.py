"""BackOff: the sources that could not be reached a moment ago, and when to try them again."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from lokr_serve.errors import SourceUnavailableError

MAX_SOURCES = 4096  # then the one that failed least recently is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    problem: str
    wait_seconds: float
    retry_at: float  # monotonic


class BackOff:
    """Waits after each failure of a source, twice as long each time; lives on the event loop."""

    def __init__(
        self,
        *,
        first_seconds: float,
        max_seconds: float,
        max_sources: int = MAX_SOURCES,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._max_sources = max_sources
        self._clock = clock
        self._failures: OrderedDict[str, _Failure] = OrderedDict()

    def __len__(self) -> int:
        """Count the sources that are known to fail."""
        return len(self._failures)

    def require(self, source: str) -> None:
        """Check that a source may be tried.

        Raises:
            SourceUnavailableError: It failed, and it is too early to try again.
        """
        failure = self._failures.get(source)
        if failure is None:
            return
        rest_seconds = failure.retry_at - self._clock()
        if rest_seconds > 0:
            raise SourceUnavailableError(source, failure.problem, rest_seconds)

    def note(self, source: str, problem: str) -> SourceUnavailableError:
        """Note that a source has failed, and return what to raise."""
        before = self._failures.pop(source, None)
        wait = self._first_seconds if before is None else 2 * before.wait_seconds
        wait = min(wait, self._max_seconds)
        self._failures[source] = _Failure(
            problem=problem, wait_seconds=wait, retry_at=self._clock() + wait
        )
        if len(self._failures) > self._max_sources:
            self._failures.popitem(last=False)
        return SourceUnavailableError(source, problem, wait)

    def clear(self, source: str) -> None:
        """Note that a source has been read."""
        self._failures.pop(source, None)

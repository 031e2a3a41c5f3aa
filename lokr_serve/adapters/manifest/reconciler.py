"""Reconciler: holds the adapters to the manifest, whatever happens to either."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from lokr_core import LokrError
from lokr_serve.adapters.manifest.declared import DeclaredAdapters
from lokr_serve.adapters.manifest.file import SETTLE_SECONDS, ManifestFile
from lokr_serve.adapters.manifest.reading import DeclaredAdapter, Manifest
from lokr_serve.adapters.record import retry_delay
from lokr_serve.config import AdapterSettings
from lokr_serve.errors import ManifestError, SourceUnavailableError
from lokr_serve.metrics import ManifestMetrics
from lokr_serve.types import AdapterState

logger = logging.getLogger(__name__)

REPORT_SECONDS = 30.0  # between two lines of the log on what readiness waits for
MAX_NAMED = 10  # adapters in such a line
PASS_SHARE = 0.1  # of the event loop's time for passes over a long manifest


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """What is being done for one id."""

    adapter_id: str
    goal: DeclaredAdapter | None  # None: it is declared no more
    num_failures: int = 0  # in a row
    is_done: bool = False
    task: asyncio.Task[None] = field(init=False)


class Reconciler:
    """Compares what is declared with what is there, again and again; lives on the event loop.

    A pass over the manifest starts what is to be done for single ids, each of which is one task;
    the end of a task, a change of the file, or the time that has passed start the next pass.
    """

    def __init__(
        self,
        *,
        file: ManifestFile,
        declared: DeclaredAdapters,
        settings: AdapterSettings,
        metrics: ManifestMetrics,
    ) -> None:
        self._file = file
        self._declared = declared
        self._settings = settings
        self._metrics = metrics
        self._manifest = Manifest(adapters={}, aliases={})
        self._held: set[str] = set()  # ids that the manifest has, or had until they are let go
        self._work: dict[str, _Work] = {}
        # One thread is left for what requests wait for.
        self._slots = asyncio.Semaphore(max(1, settings.max_loads - 1))
        self._wake = asyncio.Event()
        self._last_problem = ""
        self._on_complete: Callable[[], None] | None = None
        self._report_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self, on_complete: Callable[[], None]) -> None:
        """Register what is declared at once, and hold the adapters to it from now on.

        Args:
            on_complete: Is called once every declared adapter has been loaded.
        """
        self._on_complete = on_complete
        self._accept(self._file.first)
        self._reconcile()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave the adapters as they are."""
        tasks = [work.task for work in self._work.values()]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        look_at = clock()
        while True:
            self._wake.clear()
            if clock() >= look_at:
                await self._look()
                pause = self._settings.manifest_seconds
                look_at = clock() + (
                    min(pause, SETTLE_SECONDS) if self._file.is_changing else pause
                )
            began = clock()
            try:
                self._reconcile()
            except Exception:  # the edge of a pass: the next one finds what this one left
                logger.exception("the adapters could not be compared with the manifest")
            await asyncio.sleep((clock() - began) * (1 / PASS_SHARE - 1))
            with suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._wake.wait()

    async def _look(self) -> None:
        """Take the file as it is now, if it has changed and can be taken."""
        try:
            manifest = await asyncio.to_thread(self._file.look)
        except ManifestError as error:
            self._refuse(str(error))
        except Exception:  # the edge of a look: the file is followed on, whatever this one met
            logger.exception("looking at the manifest failed unexpectedly")
            self._refuse("the manifest could not be looked at")
        else:
            if manifest is not None:
                self._accept(manifest)

    def _refuse(self, problem: str) -> None:
        """Keep what was declared; what keeps the file from being read is told once."""
        self._metrics.manifest_good.set(0)
        if problem != self._last_problem:
            self._last_problem = problem
            self._metrics.manifest_errors.inc()
            logger.error("what is declared stays as it was: %s", problem)

    def _accept(self, manifest: Manifest) -> None:
        before, self._manifest = self._manifest.adapters, manifest
        now = manifest.adapters
        logger.info(
            "the manifest declares %d adapters: %d are new, %d have changed, %d are gone",
            len(now),
            len(now.keys() - before.keys()),
            sum(now[name] != before[name] for name in now.keys() & before.keys()),
            len(before.keys() - now.keys()),
        )
        self._last_problem = ""
        self._metrics.manifest_good.set(1)
        self._metrics.last_good.set_to_current_time()

    def _reconcile(self) -> None:
        """Start whatever there is to do; what is being done for an older manifest is ended."""
        for entry in self._manifest.adapters.values():
            self._pursue(entry.adapter_id, entry)
        still_named = self._declared.name(self._manifest)
        for adapter_id in self._held - self._manifest.adapters.keys() - still_named:
            self._pursue(adapter_id, None)
        self._count()
        self._tell_if_complete()

    def _pursue(self, adapter_id: str, goal: DeclaredAdapter | None) -> None:
        work = self._work.get(adapter_id)
        if work is not None and work.goal == goal:
            return
        if goal is not None:
            self._held.add(adapter_id)
            self._declared.take(goal)
        if work is not None:
            work.task.cancel()  # its end starts the pass that goes on from here
            return
        if goal is not None and self._declared.is_settled(goal):
            return
        work = _Work(adapter_id=adapter_id, goal=goal)
        work.task = asyncio.create_task(self._do(work))
        work.task.add_done_callback(lambda _: self._end(adapter_id))
        self._work[adapter_id] = work

    def _end(self, adapter_id: str) -> None:
        del self._work[adapter_id]
        self._wake.set()

    async def _do(self, work: _Work) -> None:
        """Bring an id to its goal, however often that fails."""
        while not work.is_done:
            try:
                if work.goal is None:
                    await self._declared.let_go(work.adapter_id)
                    self._held.discard(work.adapter_id)
                else:
                    async with self._slots:
                        await self._declared.bring(work.goal)
                work.is_done = True
            except LokrError as error:
                await self._wait_after(work, error)
            except Exception as error:  # the edge of a task; whatever it was is tried again
                logger.exception("declared adapter %r failed unexpectedly", work.adapter_id)
                await self._wait_after(work, error)

    async def _wait_after(self, work: _Work, error: Exception) -> None:
        """Note a failure, and wait until it is time for the next attempt."""
        work.num_failures += 1
        delay = retry_delay(self._settings, work.num_failures)
        if isinstance(error, SourceUnavailableError):
            delay = max(delay, error.retry_seconds)
        if work.goal is not None:
            self._declared.note_failure(work.goal, error)
        logger.warning(
            "declared adapter %r: %s (tried again after %.0f s)",
            work.adapter_id,
            error,
            delay,
        )
        self._wake.set()
        await asyncio.sleep(delay)

    def _count(self) -> None:
        counts = Counter(self._states())
        for state in AdapterState:
            self._metrics.declared_adapters.labels(state.value).set(counts[state])

    def _states(self) -> Iterator[AdapterState]:
        for adapter_id in self._held:
            work, entry = self._work.get(adapter_id), self._manifest.adapters.get(adapter_id)
            if entry is None:
                yield AdapterState.DRAINING
            elif work is not None:
                yield AdapterState.FAILED if work.num_failures else AdapterState.LOADING
            else:
                is_resident = self._declared.is_resident(entry)
                yield AdapterState.READY if is_resident else AdapterState.REGISTERED

    def _tell_if_complete(self) -> None:
        if self._on_complete is None:
            return
        entries = self._manifest.adapters.values()
        missing = [entry.adapter_id for entry in entries if not self._declared.is_settled(entry)]
        if not missing:
            on_complete, self._on_complete = self._on_complete, None
            logger.info("all %d declared adapters have been loaded", len(entries))
            on_complete()
            return
        now = asyncio.get_running_loop().time()
        if now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            more = ", …" if len(missing) > MAX_NAMED else ""
            names = ", ".join(missing[:MAX_NAMED]) + more
            logger.info("not ready before %d declared adapters are loaded: %s", len(missing), names)

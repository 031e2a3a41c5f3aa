"""ImageEngine: the thread that runs modules, those that run pipelines, and the door to them."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable

import torch

from lokr_core import Adapted, LokrError
from lokr_serve.config import ImageSettings
from lokr_serve.errors import (
    DeadlineError,
    EngineStoppedError,
    InvalidRequestError,
    NotFiniteError,
)
from lokr_serve.image.encode import require_metadata_fits, require_size_fits
from lokr_serve.image.forwards import Forwards
from lokr_serve.image.gather import Gathering, RequestCancelledError, stopped
from lokr_serve.image.generation import ImageGeneration
from lokr_serve.image.job import Job
from lokr_serve.image.load import LoadedPipeline
from lokr_serve.image.mailbox import Mailbox
from lokr_serve.image.metadata import image_metadata
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.image.turns import Turns
from lokr_serve.image.work import Work
from lokr_serve.image.workers import Workers
from lokr_serve.metrics import Metrics
from lokr_serve.types import EngineHealth, ImageEvent, ImageFinished

logger = logging.getLogger(__name__)


class ImageEngine:
    """Makes images for many requests at once, each with its own mix.

    Each running request has a thread, in which the stock pipeline runs; what pipelines call of
    the shared modules is run by the engine's thread, which does all of a model's work.
    """

    def __init__(
        self,
        *,
        adapted: Adapted,
        factory: PipelineFactory,
        loaded: LoadedPipeline,
        settings: ImageSettings,
        metrics: Metrics,
    ) -> None:
        self._adapted = adapted
        self._factory = factory
        self._loaded = loaded
        self._settings = settings
        self._metrics = metrics
        turns = Turns(max_rows=settings.max_rows, gather_seconds=settings.gather_seconds)
        self._gathering = Gathering(turns)
        self._forwards = Forwards(
            adapted=adapted,
            gathering=self._gathering,
            metrics=metrics,
            denoiser=loaded.family.denoiser,
        )
        self._workers = Workers(
            num_threads=settings.max_requests,
            run=self._work,
            metrics=metrics,
        )
        self._lock = threading.Lock()
        self._live: set[Job] = set()  # submitted, and not yet closed
        self._is_stopping = False
        self._error: str | None = None
        self._step_started_at: float | None = None
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="image-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread and those of requests."""
        self._workers.start()
        self._thread.start()

    async def begun(self) -> None:
        """Return at once: the thread needs nothing that could be missing."""

    async def stop(self, timeout_seconds: float | None = None) -> None:
        """End the threads; every live request gets EngineStoppedError.

        Args:
            timeout_seconds: How long what runs may still take; None is for ever.

        Raises:
            EngineStoppedError: It took longer. Its thread is left behind.
        """
        self._end_all()
        if not self._thread.is_alive():
            return
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if not await asyncio.to_thread(self._join, deadline):
            self.abandon()
            raise EngineStoppedError("the engine has been in one step for too long to wait for it")

    def abandon(self) -> None:
        """End every request without waiting for the step that runs.

        For an engine that is stuck, in a process that is about to end: what the requests held
        is given back although the step may still use it.
        """
        self._end_all()
        with self._lock:
            jobs = list(self._live)
        for job in jobs:
            job.mailbox.fail(EngineStoppedError("the engine is stuck; send the request elsewhere"))
            job.mailbox.close()

    def check(self, generation: ImageGeneration) -> None:
        """Refuse what can never run.

        Raises:
            InvalidRequestError: An adapter gives a module outputs of another number, or the format
                of images has no room for their size or metadata.
        """
        output, plan = generation.request.output, generation.plan
        require_size_fits(output, plan.width, plan.height)
        seeds = plan.seeds
        longest = seeds.index(max(seeds))  # to write down; all else is the same in every image
        metadata = image_metadata(generation, longest, model=self._loaded.name)
        require_metadata_fits(output, metadata)
        path = self._adapted.resized_module(generation.mix)
        if path is not None:
            raise InvalidRequestError(
                "adapters",
                f"{generation.mix.name!r} replaces {path!r} by a weight of another size, which "
                "cannot share steps with the base's",
            )

    async def generate(
        self, generation: ImageGeneration, on_admitted: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[ImageEvent, None]:
        """Yield the events of one request until each of its images has finished.

        Closing the iterator cancels the request; its work ends at its next step or call, and only
        then is the iterator closed, so that what the request held can be given back after it.

        Args:
            generation: The request.
            on_admitted: Called on the event loop once a thread has the request, before any event.

        Raises:
            InvalidRequestError: The request can never run.
            DeadlineError: Its deadline passed while it waited.
            GenerationFailedError: The request cannot be computed, even alone.
            DeviceMemoryError: The device has no memory for it, even alone.
            NotFiniteError: Its latents or pixels are beyond all numbers.
            EngineStoppedError: The engine has ended.
        """
        self.check(generation)
        job = Job(generation, Mailbox(asyncio.get_running_loop(), on_admitted))
        self._submit(job)
        num_left = len(job.seeds)
        try:
            while num_left:
                for event in await job.mailbox.take():
                    num_left -= isinstance(event, ImageFinished)
                    yield event
        finally:
            self._cancel(job)
            await job.mailbox.wait_closed()

    def health(self) -> EngineHealth:
        """Return whether the engine does its work."""
        started_at = self._step_started_at
        return EngineHealth(
            is_alive=self._thread.is_alive(),
            stuck_seconds=0.0 if started_at is None else time.monotonic() - started_at,
            error=self._error,
        )

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._is_stopping:
                raise EngineStoppedError("the engine has stopped; send the request elsewhere")
            self._workers.submit(job)
            self._live.add(job)

    def _cancel(self, job: Job) -> None:
        if self._workers.withdraw(job):
            self._close(job)
        else:
            self._gathering.dismiss(job.member, RequestCancelledError())

    def _work(self, job: Job) -> None:
        """Do a request's work on its thread; whatever happens, it gets its end."""
        error: LokrError | None = None
        try:
            self._metrics.queue_seconds.observe(job.begin())
            self._do(job)
        except RequestCancelledError:
            logger.debug("request %s was cancelled", job.request_id)
        except (DeadlineError, EngineStoppedError, InvalidRequestError, NotFiniteError) as ending:
            error = ending
        except torch.OutOfMemoryError:
            logger.exception("request %s lacked memory", job.request_id)
            error = job.want_of_memory()
        except Exception as fault:
            logger.exception("request %s failed", job.request_id)
            error = job.fault()
            if isinstance(fault, torch.AcceleratorError):
                self._give_up(fault)
                error = stopped()
        if error is not None:
            job.mailbox.fail(error)
        self._close(job)

    def _do(self, job: Job) -> None:
        work = Work(
            job,
            gathering=self._gathering,
            loaded=self._loaded,
            factory=self._factory,
            metrics=self._metrics,
        )
        work.do()

    def _close(self, job: Job) -> None:
        """Note that nothing works for a request any more."""
        with self._lock:
            self._live.discard(job)
        self._metrics.image_request_seconds.observe(time.monotonic() - job.generation.accepted_at)
        job.mailbox.close()

    def _run(self) -> None:
        """Run steps until stopped; whatever happens, every request gets its end."""
        try:
            torch.get_num_threads()  # before it is set, as in start_on_one_core
            torch.set_num_threads(self._num_threads)
            while self._step():
                pass
        except Exception as error:
            logger.exception("the engine has failed")
            self._give_up(error)
        finally:
            self._step_started_at = None
            self._gathering.abort()
            self._end_all()

    def _step(self) -> bool:
        """Run one batch of calls, and say whether there was one; nothing of it is kept after."""
        batch = self._gathering.take()
        if not batch:
            return False
        self._step_started_at = time.monotonic()
        self._forwards.run(batch)
        self._step_started_at = None
        return True

    def _give_up(self, error: Exception) -> None:
        """End the engine after an error that the device does not recover from."""
        self._error = type(error).__name__
        self._gathering.close()

    def _end_all(self) -> None:
        """End every request: those in line at once, the others at their next step or call."""
        with self._lock:
            self._is_stopping = True
            jobs = list(self._live)
        for job in self._workers.close():
            job.mailbox.fail(stopped())
            self._close(job)
        for job in jobs:
            self._gathering.dismiss(job.member, stopped())
        self._gathering.close()

    def _join(self, deadline: float | None) -> bool:
        """Wait until all threads have ended, and say whether they have."""
        self._thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return self._workers.join(deadline) and not self._thread.is_alive()

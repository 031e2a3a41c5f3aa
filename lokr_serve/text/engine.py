"""TextEngine: the thread that schedules, runs and samples, and the door to it."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future

import torch
from transformers import PreTrainedTokenizerFast

from lokr_core import Adapted, AdapterMix
from lokr_serve.config import TextSettings
from lokr_serve.errors import EngineStoppedError, InvalidRequestError
from lokr_serve.metrics import Metrics
from lokr_serve.text.cache_share import num_pages
from lokr_serve.text.generation import Generation, Mailbox
from lokr_serve.text.job import Job
from lokr_serve.text.limits import model_limits
from lokr_serve.text.prompt import PromptLimits
from lokr_serve.text.schedule import Schedule
from lokr_serve.types import EngineHealth, Finished, GenerationEvent

logger = logging.getLogger(__name__)


class TextEngine:
    """Generates text for many requests at once, each with its own mix.

    One thread does all torch work. Requests reach it through a list of commands; events come back
    through one mailbox for each request.
    """

    def __init__(
        self,
        *,
        adapted: Adapted,
        tokenizer: PreTrainedTokenizerFast | None,
        settings: TextSettings,
        metrics: Metrics,
    ) -> None:
        self._adapted = adapted
        self._tokenizer = tokenizer
        self._settings = settings
        self._metrics = metrics
        self._limits = model_limits(adapted, settings, tokenizer)
        metrics.describe_cache(page_tokens=settings.page_tokens, num_pages=num_pages(settings))
        self._commands: list[Job] = []  # submitted, or to be cancelled
        self._wake = threading.Condition()
        self._live: set[Job] = set()  # submitted, with a reader
        self._is_stopping = False
        self._has_ended = False  # no step runs any more, and no command is read
        self._error: str | None = None
        self._step_started_at: float | None = None
        self._num_threads = torch.get_num_threads()
        self._begun: Future[None] = Future()
        self._begun.set_running_or_notify_cancel()  # it ends, whether or not anyone still waits
        self._thread = threading.Thread(target=self._run, name="text-engine", daemon=True)

    @property
    def prompt_limits(self) -> PromptLimits:
        """What a prompt may be."""
        return PromptLimits(
            vocab_size=self._limits.vocab_size, max_prompt_tokens=self._limits.max_prompt_tokens
        )

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    async def begun(self) -> None:
        """Wait until the thread has all that its steps need.

        Raises:
            EngineStoppedError: It could not get it.
        """
        await asyncio.wrap_future(self._begun)

    async def stop(self, timeout_seconds: float | None = None) -> None:
        """End the thread; every live request gets EngineStoppedError.

        Args:
            timeout_seconds: How long the step that runs may still take; None is for ever.

        Raises:
            EngineStoppedError: The step took longer. Its thread is left behind.
        """
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_seconds)
            if self._thread.is_alive():
                stuck_seconds = self.health().stuck_seconds
                self.abandon()
                raise EngineStoppedError(
                    f"the engine has been in one step for {stuck_seconds:.0f} s and does not end"
                )
        else:
            self._end_all(None)  # what was sent to an engine that never ran

    def abandon(self) -> None:
        """End every request without waiting for the step that runs.

        For an engine that is stuck, in a process that is about to end: what the requests held
        is given back although the step may still use it.
        """
        with self._wake:
            self._is_stopping = self._has_ended = True
            jobs = list(self._live)
        for job in jobs:
            job.fail(EngineStoppedError("the engine is stuck; send the request elsewhere"))
            job.close()

    def check(self, generation: Generation) -> None:
        """Refuse what can never run.

        Raises:
            InvalidRequestError: The prompt, or a number of sequences, is beyond the limits; or an
                adapter gives a module outputs of another number.
        """
        self._limits.check(generation)
        self._require_served(generation.mix)

    async def generate(
        self, generation: Generation, on_admitted: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Yield the events of one request until each of its sequences has finished.

        Closing the iterator cancels the request; its rows are free at the next step, and only
        then is the iterator closed, so that what the request held can be given back after it.

        Args:
            generation: The request.
            on_admitted: Called on the event loop once the request has its rows, before any event.

        Raises:
            InvalidRequestError: The request can never run.
            DeadlineError: Its deadline passed while it waited.
            GenerationFailedError: The request cannot be computed, even alone.
            DeviceMemoryError: The device has no memory for it, even alone.
            EngineStoppedError: The engine has ended.
        """
        self.check(generation)
        mailbox = Mailbox(asyncio.get_running_loop(), on_admitted)
        job = Job(generation, mailbox, self._limits, self._tokenizer)
        self._submit(job)
        num_left = generation.sampling.n
        try:
            while num_left:
                for event in await job.mailbox.take():
                    num_left -= isinstance(event, Finished)
                    yield event
        finally:
            try:
                if num_left and self._cancel(job):
                    await job.mailbox.wait_closed()
            finally:
                self._live.discard(job)

    def health(self) -> EngineHealth:
        """Return whether the engine does its work."""
        started_at = self._step_started_at
        return EngineHealth(
            is_alive=self._thread.is_alive(),
            stuck_seconds=0.0 if started_at is None else time.monotonic() - started_at,
            error=self._error,
        )

    def _require_served(self, mix: AdapterMix) -> None:
        path = self._adapted.resized_module(mix)
        if path is not None:
            raise InvalidRequestError(
                "adapters",
                f"{mix.name!r} replaces {path!r} by a weight of another size, such as that of a "
                "larger vocabulary, which cannot share steps with the base's",
            )

    def _submit(self, job: Job) -> None:
        with self._wake:
            if self._error is not None or self._is_stopping:
                raise EngineStoppedError("the engine has stopped; send the request elsewhere")
            self._live.add(job)
            self._commands.append(job)
            self._wake.notify()

    def _cancel(self, job: Job) -> bool:
        """Have a request dropped; whether there is a step to wait for."""
        job.is_cancelled = True
        with self._wake:
            self._commands.append(job)
            self._wake.notify()
            return not self._has_ended

    def _run(self) -> None:
        """Run until stopped; whatever happens, every request gets its end."""
        schedule = None
        try:
            torch.set_num_threads(self._num_threads)  # loader threads set theirs, for all to come
            schedule = Schedule(self._adapted, self._settings, self._metrics)
            self._begun.set_result(None)
            while self._take_commands(schedule):
                self._step_started_at = time.monotonic()
                schedule.step()
                self._step_started_at = None
        except Exception as error:
            logger.exception("the engine has failed")
            with self._wake:
                self._error = type(error).__name__
        finally:
            self._step_started_at = None
            if not self._begun.done():
                problem = f"the engine could not begin: {self._error}; the log has the cause"
                self._begun.set_exception(EngineStoppedError(problem))
            self._end_all(schedule)

    def _take_commands(self, schedule: Schedule) -> bool:
        """Hand what was asked for to the schedule, waiting while there is nothing to do."""
        with self._wake:
            self._wake.wait_for(lambda: self._commands or self._is_stopping or not schedule.is_idle)
            commands, self._commands = self._commands, []
        for job in commands:
            if job.is_cancelled:
                schedule.cancel(job)
                job.close()
            else:
                schedule.submit(job)
        schedule.admit()
        return not self._is_stopping

    def _end_all(self, schedule: Schedule | None) -> None:
        with self._wake:
            self._is_stopping = self._has_ended = True
            commands, self._commands = self._commands, []
        jobs = {*commands, *(schedule.jobs() if schedule is not None else ())}
        for job in jobs:
            job.fail(EngineStoppedError("the engine stopped before the request had finished"))
            job.close()

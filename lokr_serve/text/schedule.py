"""Schedule: which requests have rows, step by step; lives on the engine's thread."""

import itertools
import logging
import time
from collections.abc import Sequence
from functools import partial

import torch

from lokr_core import Adapted, LokrError
from lokr_serve.config import TextSettings
from lokr_serve.errors import NumericsError
from lokr_serve.fair_queue import FairQueue
from lokr_serve.mailbox import post
from lokr_serve.metrics import Metrics
from lokr_serve.text.batching import PagedBatch, StepOutcome
from lokr_serve.text.generation import Mailbox
from lokr_serve.text.isolation import Isolation
from lokr_serve.text.job import Job, Row
from lokr_serve.text.sampling import Sampled
from lokr_serve.types import Finished, GenerationEvent

logger = logging.getLogger(__name__)


class Schedule:
    """The waiting line, the rows of the batch, and what to do when a step fails."""

    def __init__(self, adapted: Adapted, settings: TextSettings, metrics: Metrics) -> None:
        self._adapted = adapted
        self._metrics = metrics
        self._max_rows = settings.max_rows
        self._queue: FairQueue[Job] = FairQueue()
        self._batch = PagedBatch(adapted, settings)
        self._rows: dict[str, Row] = {}  # of every running request, in the batch or held back
        self._isolation: Isolation[Row] = Isolation()
        self._outbox: dict[Mailbox, list[GenerationEvent]] = {}
        self._row_ids = itertools.count()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._rows and not len(self._queue)

    def jobs(self) -> set[Job]:
        """Take every request out, waiting or running."""
        self._flush()  # a request that ended in a step that then raised is no longer among them
        jobs = {row.job for row in self._rows.values()}
        while len(self._queue):
            jobs.add(self._queue.pop())
        return jobs

    def submit(self, job: Job) -> None:
        """Put a request into the waiting line."""
        self._queue.push(job, share=job.share, cost=job.cost)

    def cancel(self, job: Job) -> None:
        """Take a request out, wherever it is."""
        self._queue.remove(job)
        self._end(job)
        self._show_load()  # no step may follow

    def step(self) -> None:
        """Run one step, and post what it gave.

        Raises:
            torch.AcceleratorError: The device has failed for good.
        """
        self._go_on()
        self._show_load()
        began_at = time.monotonic()
        outcome = self._try()
        if outcome is not None:
            self._observe(outcome, time.monotonic() - began_at)
            self._advance(outcome)
        self._show_load()  # first: who has the last event finds its rows gone
        self._flush()

    def _try(self) -> StepOutcome | None:
        """Run the batch's step; one that fails is made good, and has no outcome."""
        try:
            return self._batch.step()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            logger.exception("a step failed; its rows are tried again apart")
            is_out_of_memory = isinstance(error, torch.OutOfMemoryError)
        # What the failed step held is free from here on.
        self._recover(is_out_of_memory=is_out_of_memory)
        if is_out_of_memory:
            self._adapted.give_back_memory()
            self._metrics.merge_cache_bytes.set(self._adapted.merges.num_bytes)
        return None

    def admit(self) -> None:
        """Give rows to the requests whose turn it is; none while rows are tested apart."""
        while not self._isolation.is_active and len(self._queue):
            now = time.monotonic()
            job = self._queue.peek()
            if job.generation.deadline <= now:
                self._queue.remove(job)  # not popped: its client is not charged for it
                job.fail(job.lateness())
                continue
            if len(self._rows) + job.generation.sampling.n > self._max_rows:
                break
            self._begin(self._queue.pop(), now)

    def _begin(self, job: Job, now: float) -> None:
        job.mailbox.admit()
        self._metrics.queue_seconds.observe(now - job.generation.accepted_at)
        self._metrics.prompt_tokens.inc(len(job.generation.prompt_ids))
        for index in range(job.generation.sampling.n):
            self._place(job, index, now)

    def _place(self, job: Job, index: int, now: float) -> None:
        sequence = job.build_sequence(index)
        sequence.begin(now)
        row = Row(f"row-{next(self._row_ids)}", job, sequence)
        job.rows.append(row)
        self._rows[row.row_id] = row
        self._batch.add(row.batch_row())

    def _advance(self, outcome: StepOutcome) -> None:
        now = time.monotonic()
        for row_id, sampled in outcome.tokens:
            row = self._rows.get(row_id)
            if row is None:
                continue  # a sequence of the same request has just failed
            if isinstance(sampled, NumericsError):
                logger.error("request %s: %s", row.job.generation.request_id, sampled)
                self._fail(row.job, row.job.fault())
            else:
                self._advance_row(row, sampled, now)

    def _advance_row(self, row: Row, sampled: Sampled, now: float) -> None:
        is_first = not row.sequence.output_ids
        if is_first:
            row.sequence.cached_prompt_tokens = self._batch.cached_tokens(row.row_id)
            self._metrics.cached_prompt_tokens.inc(row.sequence.cached_prompt_tokens)
            self._metrics.time_to_first_token.observe(now - row.job.generation.accepted_at)
        advance = row.sequence.advance(sampled, now)
        events = self._outbox.setdefault(row.job.mailbox, [])
        events.append(advance.chunk)
        if advance.finished is not None:
            events.append(advance.finished)
            self._remove(row)
            self._observe_end(advance.finished)
        elif self._isolation.is_active:
            self._batch.remove(row.row_id)
            self._isolation.clear(row)

    def _observe(self, outcome: StepOutcome, seconds: float) -> None:
        metrics = self._metrics
        metrics.step_seconds.observe(seconds)
        metrics.step_rows.observe(outcome.num_rows)
        metrics.step_mixes.observe(outcome.num_mixes)
        metrics.generated_tokens.inc(len(outcome.tokens))
        metrics.rows.labels("merged").inc(outcome.num_merged_rows)
        metrics.rows.labels("unmerged").inc(outcome.num_rows - outcome.num_merged_rows)

    def _show_load(self) -> None:
        self._metrics.requests_running.set(len(self._rows))
        self._metrics.requests_waiting.set(len(self._queue))
        self._metrics.kv_cache_utilization.set(self._batch.cache_share())

    def _observe_end(self, finished: Finished) -> None:
        timing, num_tokens = finished.timing, finished.usage.completion_tokens
        if num_tokens > 1:
            seconds = timing.total_seconds - timing.first_token_seconds
            self._metrics.time_per_output_token.observe(seconds / (num_tokens - 1))

    def _recover(self, *, is_out_of_memory: bool) -> None:
        """Take every row out of the batch after a failed step, and see who can run."""
        self._metrics.step_failures.inc()
        scheduled = [self._rows[row_id] for row_id in self._batch.scheduled()]
        running = list(self._rows.values())
        if self._isolation.is_active:
            running = list(self._isolation.testing) or running
        self._batch.reset()
        culprit = self._isolation.fail(scheduled, running)
        if culprit is not None:
            job = culprit.job
            self._fail(job, job.want_of_memory() if is_out_of_memory else job.fault())

    def _go_on(self) -> None:
        """Begin the next test once no row is left in the last one."""
        if self._isolation.is_active and not self._isolation.testing:
            for row in self._isolation.next_rows():
                self._batch.add(row.batch_row())

    def _fail(self, job: Job, error: LokrError) -> None:
        """End a request that cannot be computed."""
        job.fail(error)
        self._end(job)

    def _end(self, job: Job) -> None:
        for row in job.rows:
            if self._rows.get(row.row_id) is row:
                self._remove(row)

    def _remove(self, row: Row) -> None:
        del self._rows[row.row_id]
        self._batch.remove(row.row_id)
        self._isolation.discard(row)

    def _flush(self) -> None:
        """Post the events of the step, once for each loop."""
        outbox, self._outbox = self._outbox, {}
        for loop in {mailbox.loop for mailbox in outbox}:
            sent = [(box, events) for box, events in outbox.items() if box.loop is loop]
            post(loop, partial(_deliver, sent))


def _deliver(sent: Sequence[tuple[Mailbox, list[GenerationEvent]]]) -> None:
    for mailbox, events in sent:
        mailbox.put(events)

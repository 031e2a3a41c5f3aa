"""Job: a request in the engine, the rows that it has in the batch, and its way back."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from lokr_core import Apply, LokrError
from lokr_serve.errors import DeadlineError, DeviceMemoryError, GenerationFailedError
from lokr_serve.fair_queue import Share
from lokr_serve.mailbox import post
from lokr_serve.text.batching import BatchRow
from lokr_serve.text.generation import Generation, Mailbox
from lokr_serve.text.limits import Limits
from lokr_serve.text.sequence import SequenceSpec, SequenceState


class Job:
    """A request in the engine: its sequences, and the mailbox that its events go to."""

    def __init__(
        self,
        generation: Generation,
        mailbox: Mailbox,
        limits: Limits,
        tokenizer: PreTrainedTokenizerFast | None,
    ) -> None:
        self.generation = generation
        self.mailbox = mailbox
        self.is_cancelled = False
        self.rows: list[Row] = []
        self._limits = limits
        self._tokenizer = tokenizer

    @property
    def share(self) -> Share:
        """Whose share of the engine it counts against."""
        generation = self.generation
        return Share(priority=generation.priority, client=generation.client, mix=generation.mix)

    @property
    def cost(self) -> int:
        """The most tokens that the request can take, its share of the queue."""
        sampling = self.generation.sampling
        each = len(self.generation.prompt_ids) + sampling.max_tokens
        return sampling.n * min(each, self._limits.max_positions)

    def build_sequence(self, index: int) -> SequenceState:
        """Return one of the request's sequences, before its first token."""
        generation = self.generation
        spec = SequenceSpec(
            index=index,
            prompt_ids=generation.prompt_ids,
            sampling=generation.sampling,
            seed=generation.seed,
            eos_ids=self._limits.eos_ids,
            max_positions=self._limits.max_positions,
            accepted_at=generation.accepted_at,
        )
        return SequenceState(spec, self._tokenizer)

    def lateness(self) -> LokrError:
        """Return the error of a request that has waited until its deadline."""
        return DeadlineError("the deadline passed while the request waited for the engine")

    def fault(self) -> LokrError:
        """Return the error of a request that cannot be computed."""
        return GenerationFailedError(self.generation.request_id)

    def want_of_memory(self) -> LokrError:
        """Return the error of a request that the device has no memory for."""
        return DeviceMemoryError(
            f"request {self.generation.request_id!r}",
            remedy="send it later or make it shorter, or start the server with a smaller "
            "text.max_step_tokens",
        )

    def fail(self, error: LokrError) -> None:
        """Post the error that ends the request."""
        post(self.mailbox.loop, lambda: self.mailbox.fail(error))

    def close(self) -> None:
        """Post that the engine has dropped the request."""
        post(self.mailbox.loop, self.mailbox.close)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of a request that has a place in the batch."""

    row_id: str
    job: Job
    sequence: SequenceState

    def batch_row(self) -> BatchRow:
        """Return the row as the batch sees it; one that starts over brings its output."""
        generation = self.job.generation
        return BatchRow(
            row_id=self.row_id,
            token_ids=(*generation.prompt_ids, *self.sequence.output_ids),
            mix=generation.mix,
            apply=Apply.UNMERGED if generation.mix.is_base else generation.apply,
            salt=generation.salt,
            sampler=self.sequence.sampler_row(),
        )

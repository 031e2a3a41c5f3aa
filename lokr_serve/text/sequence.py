"""One sampled sequence of a request: its tokens, its text and its end."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from lokr_serve.text.detokenize import Detokenizer
from lokr_serve.text.sampling import Sampled, SamplerRow
from lokr_serve.text.seeds import derive_seed
from lokr_serve.text.stop import StopMatcher, StopResult
from lokr_serve.types import Chunk, Finished, FinishReason, SamplingParams, Timing, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """What a sequence is made from."""

    index: int  # which of the request's n sequences
    prompt_ids: Sequence[int]
    sampling: SamplingParams
    seed: int  # of the request
    eos_ids: frozenset[int]
    max_positions: int  # prompt and output together
    accepted_at: float  # time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What one more token made of a sequence."""

    chunk: Chunk
    finished: Finished | None  # once, with the last token


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    reason: FinishReason
    stop: str | int | None = None


class SequenceState:
    """Collects the tokens of one sequence and says when it ends.

    A stop string ends it before any other reason that the same token gives, then come EOS, a stop
    token, ``max_tokens`` and the context limit. Before ``min_tokens`` tokens are there, their text
    is not searched for stop strings, and the sampler is told to bar EOS and stop tokens.
    """

    def __init__(self, spec: SequenceSpec, tokenizer: PreTrainedTokenizerFast | None) -> None:
        self.cached_prompt_tokens = 0  # for the usage; whoever finds them in a cache sets it
        self._spec = spec
        self._detokenizer = Detokenizer(tokenizer, spec.prompt_ids)
        self._matcher = StopMatcher(spec.sampling.stop)
        self._output_ids: list[int] = []
        self._row = _sampler_row(spec, self._output_ids)
        self._begun_at: float | None = None
        self._first_token_at: float | None = None
        self._is_finished = False

    @property
    def index(self) -> int:
        """Which of the request's sequences this is."""
        return self._spec.index

    @property
    def output_ids(self) -> Sequence[int]:
        """The tokens sampled until now; grows in place."""
        return self._output_ids

    @property
    def is_finished(self) -> bool:
        """Whether the sequence has had its last token."""
        return self._is_finished

    def begin(self, now: float) -> None:
        """Note that the sequence left the queue; one that starts over keeps its first time."""
        if self._begun_at is None:
            self._begun_at = now

    def sampler_row(self) -> SamplerRow:
        """Return what the next token depends on; it follows the sequence as that grows."""
        return self._row

    def advance(self, sampled: Sampled, now: float) -> Advance:
        """Add a token.

        Args:
            sampled: The token.
            now: ``time.monotonic()`` when it was there.

        Returns:
            The piece to send, and with the last token the end.
        """
        assert not self._is_finished, "the sequence has ended"
        if self._first_token_at is None:
            self._first_token_at = now
        self._output_ids.append(sampled.token_id)
        end = self._end_token(sampled.token_id)
        text = "" if end else self._detokenizer.push(sampled.token_id)
        end = end or self._limit()
        if end:
            text += self._detokenizer.finish()
        found = self._search(text)
        if found.match is not None:
            end = _End(reason=FinishReason.STOP_SEQUENCE, stop=found.match)
        chunk = Chunk(
            index=self.index,
            text=found.text + (self._matcher.finish() if end else ""),
            token_ids=(sampled.token_id,),
            logprobs=() if sampled.logprob is None else (sampled.logprob,),
        )
        return Advance(chunk=chunk, finished=self._finish(end, now) if end else None)

    def _end_token(self, token_id: int) -> _End | None:
        sampling = self._spec.sampling
        if token_id in self._spec.eos_ids and not sampling.ignore_eos:
            return _End(reason=FinishReason.EOS)
        if token_id in sampling.stop_token_ids:
            return _End(reason=FinishReason.STOP_SEQUENCE, stop=token_id)
        return None

    def _limit(self) -> _End | None:
        num_output = len(self._output_ids)
        if num_output >= self._spec.sampling.max_tokens:
            return _End(reason=FinishReason.MAX_TOKENS)
        if len(self._spec.prompt_ids) + num_output >= self._spec.max_positions:
            return _End(reason=FinishReason.CONTEXT_LIMIT)
        return None

    def _search(self, text: str) -> StopResult:
        if self._row.bars_end:
            return StopResult(text=text)
        return self._matcher.push(text)

    def _finish(self, end: _End, now: float) -> Finished:
        assert self._begun_at is not None, "begin() comes before the first token"
        assert self._first_token_at is not None, "a token was just added"
        self._is_finished = True
        accepted_at = self._spec.accepted_at
        return Finished(
            index=self.index,
            reason=end.reason,
            stop=end.stop,
            usage=Usage(
                prompt_tokens=len(self._spec.prompt_ids),
                cached_prompt_tokens=self.cached_prompt_tokens,
                completion_tokens=len(self._output_ids),
            ),
            timing=Timing(
                queue_seconds=self._begun_at - accepted_at,
                first_token_seconds=self._first_token_at - accepted_at,
                total_seconds=now - accepted_at,
            ),
        )


def _sampler_row(spec: SequenceSpec, output_ids: Sequence[int]) -> SamplerRow:
    sampling = spec.sampling
    eos_ids = frozenset() if sampling.ignore_eos else spec.eos_ids
    return SamplerRow(
        params=sampling,
        seed=derive_seed(spec.seed, spec.index),
        prompt_ids=array("q", spec.prompt_ids),  # becomes a tensor without a copy
        output_ids=output_ids,
        end_ids=eos_ids.union(sampling.stop_token_ids),
    )

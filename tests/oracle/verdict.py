"""Judge: holds answers against our sampler on the logits of the peer's model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lokr_serve.text.sampling import Sampled, SamplerRow, sample
from lokr_serve.text.seeds import derive_seed
from lokr_serve.types import FinishReason, SamplingParams, TokenLogprob
from tests.oracle.clients import Answer, Received
from tests.oracle.peers import PeerPart, Peers

EOS_ID = 1
FLOAT32_ROUNDING = 2.0**-22  # of the largest logit, which Llama's norms round to float32
NUM_NUDGES = 64
LOGPROB_TOLERANCE = 1e-5


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was compared, and what differed."""

    num_tokens: int = 0
    num_logprobs: int = 0
    max_logprob_error: float = 0.0
    num_close_calls: int = 0  # tokens that differ where the peer itself is undecided
    differences: list[str] = field(default_factory=list)


class Judge:
    """Compares answers token for token.

    The peer's model reads a prompt with the tokens of the answer in one plain forward. While the
    tokens agree that gives what the peer alone would have generated, so the first difference is
    where it would have gone another way.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.verdict = Verdict()

    def compare(self, answer: Answer) -> None:
        """Compare one answer, as far as the client has read it."""
        request = answer.request
        parts = [
            PeerPart(file=answer.files[part.adapter_id], asked=part)
            for part in request.parts
            if part.adapter_id in answer.files
        ]
        for index, received in enumerate(answer.sequences):
            where = f"request {request.number}.{index} ({answer.apply.value}, {answer.end})"
            self._compare_end(where, answer, received)
            if received.token_ids:
                row_ids = [*request.prompt_ids, *received.token_ids[:-1]]
                logits = self._peers.logits(parts, row_ids)[len(request.prompt_ids) - 1 :]
                rows = _sampler_rows(answer, index)
                self._compare_tokens(where, logits, rows, received)

    def _differs(self, where: str, what: str) -> None:
        self.verdict.differences.append(f"{where}: {what}")

    def _compare_end(self, where: str, answer: Answer, received: Received) -> None:
        sampling, ids = answer.request.sampling, received.token_ids
        ends = [_end(sampling, ids[: position + 1]) for position in range(len(ids))]
        if any(ends[:-1]):
            self._differs(where, "went on after its end")
        wanted = ends[-1] if ends else None
        finished = received.finished
        if finished is None:
            if answer.end == "finished":
                self._differs(where, "has no end")
        elif finished.reason is not wanted:
            self._differs(where, f"ended by {finished.reason}, not {wanted}")
        elif finished.usage.completion_tokens != len(ids):
            self._differs(where, f"counts {finished.usage.completion_tokens} of {len(ids)} tokens")

    def _compare_tokens(
        self, where: str, logits: Tensor, rows: Sequence[SamplerRow], received: Received
    ) -> None:
        wanted = sample(logits, rows)
        for position, (token_id, row) in enumerate(zip(received.token_ids, rows, strict=True)):
            peer = wanted[position]
            assert isinstance(peer, Sampled), peer
            self.verdict.num_tokens += 1
            if peer.token_id == token_id:
                self._compare_logprob(where, peer.logprob, received, position)
            elif _is_close_call(logits[position], row, token_id):
                self.verdict.num_close_calls += 1
            else:
                self._differs(where, f"token {position} is {token_id}, not {peer.token_id}")

    def _compare_logprob(
        self, where: str, wanted: TokenLogprob | None, received: Received, position: int
    ) -> None:
        if wanted is None:
            if received.logprobs:
                self._differs(where, "has log-probabilities that nobody asked for")
            return
        found = received.logprobs[position]
        pairs = [(found.logprob, wanted.logprob)]
        tops = zip(found.top, wanted.top, strict=True)
        pairs += [(one.logprob, other.logprob) for one, other in tops]
        error = max(abs(one - other) for one, other in pairs)
        self.verdict.num_logprobs += len(pairs)
        self.verdict.max_logprob_error = max(self.verdict.max_logprob_error, error)
        if error > LOGPROB_TOLERANCE:
            self._differs(where, f"log-probability {position} is off by {error:.1e}")


def _sampler_rows(answer: Answer, index: int) -> list[SamplerRow]:
    """Return what each token of a sequence depends on, by the tokens before it."""
    request = answer.request
    sampling, ids = request.sampling, answer.sequences[index].token_ids
    eos = () if sampling.ignore_eos else (EOS_ID,)
    return [
        SamplerRow(
            params=sampling,
            seed=derive_seed(request.seed, index),
            prompt_ids=request.prompt_ids,
            output_ids=ids[:position],
            end_ids=frozenset((*eos, *sampling.stop_token_ids)),
        )
        for position in range(len(ids))
    ]


def _end(sampling: SamplingParams, ids: Sequence[int]) -> FinishReason | None:
    """Return why a sequence ends with the last of its tokens, if it does."""
    if ids[-1] == EOS_ID and not sampling.ignore_eos:
        return FinishReason.EOS
    if ids[-1] in sampling.stop_token_ids:
        return FinishReason.STOP_SEQUENCE
    return FinishReason.MAX_TOKENS if len(ids) == sampling.max_tokens else None


def _is_close_call(logits: Tensor, row: SamplerRow, token_id: int) -> bool:
    """Whether the peer might take a token if its logits were rounded to float32."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NUM_NUDGES, len(logits), generator=generator, dtype=logits.dtype)
    nudged = logits + FLOAT32_ROUNDING * logits.abs().max() * noise
    results = sample(nudged, [row] * NUM_NUDGES)
    return any(isinstance(r, Sampled) and r.token_id == token_id for r in results)

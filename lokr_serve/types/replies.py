"""What a request for text gets: how it was admitted, its tokens, and its end."""

from dataclasses import dataclass
from enum import Enum

from lokr_serve.types.requests import ApplyMode


class FinishReason(Enum):
    """Why a sequence ended."""

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LIMIT = "context_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopLogprob:
    """One alternative to a sampled token."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Log-probability of a sampled token under the model, before penalties and temperature."""

    token_id: int
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """New tokens of one sequence, and the text that they complete."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a sequence cost."""

    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the time went, in seconds since the request was accepted."""

    queue_seconds: float
    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of one sequence."""

    index: int
    reason: FinishReason
    stop: str | int | None  # the stop string or stop token that matched
    usage: Usage
    timing: Timing


GenerationEvent = Chunk | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAdapter:
    """One adapter of a mix, as the server resolved it."""

    adapter_id: str
    version: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How a request was admitted; the first event of its reply."""

    request_id: str
    prompt_tokens: int
    adapters: tuple[ResolvedAdapter, ...]
    mix_name: str  # canonical; empty for the base model
    apply_mode: ApplyMode  # unmerged or merged, as resolved
    seed: int

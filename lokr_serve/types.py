"""The values that travel between the edge and the engines; no protobuf and no torch in sight."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from lokr_serve.errors import InvalidRequestError

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def is_request_id(text: str) -> bool:
    """Return whether ``text`` may name a request: it goes into logs and call metadata."""
    return _REQUEST_ID.fullmatch(text) is not None


class ApplyMode(Enum):
    """How a request wants its mix applied."""

    AUTO = "auto"
    UNMERGED = "unmerged"
    MERGED = "merged"


class FinishReason(Enum):
    """Why a sequence ended."""

    EOS = "eos"
    STOP_SEQUENCE = "stop_sequence"
    MAX_TOKENS = "max_tokens"
    CONTEXT_LIMIT = "context_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeight:
    """One adapter as a request names it."""

    adapter_id: str
    weight: float = 1.0
    module_weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Plain text; gets the tokenizer's special tokens."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered with the tokenizer's chat template."""

    messages: tuple[ChatMessage, ...]


Prompt = TextPrompt | TokenPrompt | ChatPrompt

MAX_LOGPROBS = 20
MAX_SEQUENCES = 64
MAX_STOP_SEQUENCES = 16
MAX_STOP_BYTES = 1024


def _require(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise InvalidRequestError(f"sampling.{field}", problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn; every value is checked when the object is built.

    Raises:
        InvalidRequestError: A value is out of its range; ``field`` is its path in the request.
    """

    max_tokens: int = 256
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # drawn and reported if unset
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None  # alternatives beside the sampled token
    n: int = 1

    def __post_init__(self) -> None:
        """Check every range; NaN fails each of the comparisons."""
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(0 <= self.temperature <= 100, "temperature", "must be between 0 and 100")
        _require(self.top_k >= 0, "top_k", "must not be negative")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", "must be between 0 and 1")
        _require(
            0 < self.repetition_penalty <= 100,
            "repetition_penalty",
            "must be above 0 and at most 100",
        )
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
        _require(
            self.seed is None or 0 <= self.seed < 2**64,
            "seed",
            "must be an unsigned 64-bit integer",
        )
        _require(
            0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must not exceed max_tokens"
        )
        _require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"must be at most {MAX_LOGPROBS}",
        )
        _require(1 <= self.n <= MAX_SEQUENCES, "n", f"must be between 1 and {MAX_SEQUENCES}")
        self._check_stops()

    def _check_stops(self) -> None:
        _require(
            len(self.stop) + len(self.stop_token_ids) <= MAX_STOP_SEQUENCES,
            "stop",
            f"at most {MAX_STOP_SEQUENCES} stop sequences are allowed",
        )
        for text in self.stop:
            _require(bool(text), "stop", "a stop sequence must not be empty")
            _require(
                len(text.encode()) <= MAX_STOP_BYTES,
                "stop",
                f"a stop sequence must be at most {MAX_STOP_BYTES} bytes long",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for text; its parts are checked."""

    prompt: Prompt
    adapters: tuple[AdapterWeight, ...] = ()  # none is the base model
    sampling: SamplingParams = SamplingParams()
    request_id: str = ""  # drawn by the server if empty
    apply_mode: ApplyMode = ApplyMode.AUTO


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


class AdapterState(Enum):
    """Where a registered adapter is in its life."""

    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOverrides:
    """What a caller says in place of the file."""

    partial: bool = False
    scale_override: float | None = None
    alpha: float | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """One checked request to register and load an adapter."""

    adapter_id: str
    source: str  # path inside the adapter folder
    replace: bool = False
    pinned: bool = False
    ttl_seconds: float | None = None  # None or 0 never expires
    digest: str | None = None  # hex SHA-256 that the tensor file must have
    overrides: AdapterOverrides = AdapterOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleReport:
    """Where the scale of some modules came from."""

    source: str
    num_modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFailure:
    """Why an adapter could not be loaded."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatus:
    """A registered adapter as an operator sees it."""

    adapter_id: str
    version: str
    digest: str
    state: AdapterState
    source: str
    format: str
    algorithms: Sequence[str]
    num_modules: int
    num_parameters: int
    device_bytes: int
    host_bytes: int
    scales: Sequence[ScaleReport]
    in_flight: int
    pinned: bool
    created: datetime
    last_used: datetime | None
    warnings: Sequence[str] = ()
    error: AdapterFailure | None = None

"""How tokens are drawn."""

from dataclasses import dataclass

from lokr_serve.errors import InvalidRequestError

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

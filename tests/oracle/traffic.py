"""Random requests: prompts, mixes and ways of drawing, all from one seed."""

import random
from dataclasses import dataclass

from lokr_serve.types import AdapterWeight, ApplyMode, SamplingParams
from tests.oracle.peers import Architecture
from tests.tiny import VOCAB_SIZE

FIRST_ID = 4  # below are special tokens
MAX_PROMPT_TOKENS = 60
MAX_OUTPUT_TOKENS = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRequest:
    """A request, when it comes and when its client leaves."""

    number: int
    parts: tuple[AdapterWeight, ...]
    mode: ApplyMode
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    salt: str
    gap_seconds: float  # after the request before it
    cancel_tokens: int | None  # the client leaves after so many tokens
    cancel_seconds: float | None  # the client leaves after so long


class Traffic:
    """Draws requests; mixes and the beginnings of prompts are shared between them."""

    def __init__(self, architecture: Architecture, seed: int) -> None:
        self._draws = random.Random(seed)
        self._adapter_ids = list(architecture.adapters)
        self._patterns = architecture.patterns
        self._mixes = [self._mix() for _ in range(10)]
        self._prefixes = [self._ids(40) for _ in range(4)]

    def request(self, number: int) -> PlannedRequest:
        """Return the next request."""
        draws = self._draws
        is_popular = draws.random() < 0.6
        cancels = draws.random()
        return PlannedRequest(
            number=number,
            parts=draws.choice(self._mixes) if is_popular else self._mix(),
            mode=draws.choice(list(ApplyMode)),
            prompt_ids=self._prompt(),
            sampling=self._sampling(),
            seed=draws.getrandbits(64),
            salt=draws.choice(["", "", "tenant"]),
            gap_seconds=draws.expovariate(1 / 0.004),
            cancel_tokens=draws.randint(1, 8) if cancels < 0.1 else None,
            cancel_seconds=draws.uniform(0, 0.1) if 0.1 <= cancels < 0.2 else None,
        )

    def _ids(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._draws.randrange(FIRST_ID, VOCAB_SIZE) for _ in range(num_tokens))

    def _prompt(self) -> tuple[int, ...]:
        if self._draws.random() < 0.3:
            return self._ids(self._draws.randint(1, MAX_PROMPT_TOKENS))
        shared = self._draws.choice(self._prefixes)
        kept = self._draws.choice([len(shared), self._draws.randint(1, len(shared))])
        return shared[:kept] + self._ids(self._draws.randint(1, MAX_PROMPT_TOKENS - len(shared)))

    def _mix(self) -> tuple[AdapterWeight, ...]:
        draws = self._draws
        num_parts = draws.choice([0, 1, 1, 2, 2, 3])
        return tuple(
            AdapterWeight(
                adapter_id=adapter_id,
                weight=draws.choice([1.0, 0.5, -0.7, draws.uniform(-1.2, 1.2)]),
                module_weights=self._module_weights(),
            )
            for adapter_id in draws.sample(self._adapter_ids, num_parts)
        )

    def _module_weights(self) -> tuple[tuple[str, float], ...]:
        if self._draws.random() < 0.8:
            return ()
        return ((self._draws.choice(self._patterns), self._draws.uniform(-1, 1)),)

    def _sampling(self) -> SamplingParams:
        draws = self._draws
        max_tokens = draws.randint(1, MAX_OUTPUT_TOKENS)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=draws.choice([0.0, 0.0, 1.0, draws.uniform(0.2, 3)]),
            top_k=draws.choice([0, 0, draws.randint(1, 50)]),
            top_p=draws.choice([1.0, draws.uniform(0.3, 1)]),
            min_p=draws.choice([0.0, 0.0, draws.uniform(0, 0.3)]),
            repetition_penalty=draws.choice([1.0, 1.0, draws.uniform(0.7, 1.6)]),
            presence_penalty=draws.choice([0.0, 0.0, draws.uniform(-2, 2)]),
            frequency_penalty=draws.choice([0.0, 0.0, draws.uniform(-2, 2)]),
            stop_token_ids=self._ids(draws.choice([0, 0, 2, 8])),
            ignore_eos=draws.random() < 0.3,
            min_tokens=draws.choice([0, 0, draws.randint(0, max_tokens)]),
            logprobs=draws.choice([None, None, 0, draws.randint(1, 5)]),
            n=draws.choice([1, 1, 1, 2, 3]),
        )

"""Limits: what one request may take of the model and of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from lokr_core import Adapted
from lokr_serve.config import TextSettings
from lokr_serve.errors import InvalidRequestError, SettingsError
from lokr_serve.text.generation import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take."""

    vocab_size: int
    max_sequences: int
    max_positions: int  # prompt and output together
    max_prompt_tokens: int
    eos_ids: frozenset[int]

    def check(self, generation: Generation) -> None:
        """Refuse what is beyond the limits.

        Raises:
            InvalidRequestError: The prompt or the number of sequences is, or an id.
        """
        num_tokens = len(generation.prompt_ids)
        if not num_tokens:
            raise InvalidRequestError("prompt", "is empty")
        if num_tokens > self.max_prompt_tokens:
            raise InvalidRequestError(
                "prompt", f"has {num_tokens} tokens, but the limit is {self.max_prompt_tokens}"
            )
        if generation.sampling.n > self.max_sequences:
            raise InvalidRequestError(
                "sampling.n",
                f"{generation.sampling.n} sequences are more than the {self.max_sequences} that "
                "run at once",
            )
        self._check_ids("token_ids.ids", generation.prompt_ids)
        self._check_ids("sampling.stop_token_ids", generation.sampling.stop_token_ids)

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        for i, token_id in enumerate(ids):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequestError(
                    f"{field}[{i}]", f"{token_id} is not below {self.vocab_size}"
                )


def model_limits(
    adapted: Adapted, settings: TextSettings, tokenizer: PreTrainedTokenizerFast | None
) -> Limits:
    """Return what one request may take of the model and of the cache.

    A row may not outgrow the key-value cache, so that is a limit on the context like the model's
    own; one page is kept free so that a row that runs alone can always go on.

    Raises:
        SettingsError: The cache has less than two pages.
    """
    if settings.cache_tokens < 2 * settings.page_tokens:
        raise SettingsError(
            f"text.cache_tokens: {settings.cache_tokens} tokens are less than two pages of "
            f"{settings.page_tokens} (text.page_tokens)"
        )
    model = adapted.model
    assert isinstance(model, PreTrainedModel)
    config: PretrainedConfig = model.config.get_text_config()
    positions = settings.cache_tokens - settings.page_tokens
    own: object = getattr(config, "max_position_embeddings", None)
    if isinstance(own, int):
        positions = min(positions, own)
    max_prompt = min(positions - 1, settings.max_prompt_tokens or positions)
    return Limits(
        vocab_size=config.vocab_size,
        max_sequences=settings.max_rows,
        max_positions=positions,
        max_prompt_tokens=max_prompt,
        eos_ids=_eos_ids(model, tokenizer),
    )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> frozenset[int]:
    """Return the tokens that end a sequence: the generation config's, or the tokenizer's."""
    config = model.generation_config
    own = config.eos_token_id if config is not None else None
    if own is None and tokenizer is not None:
        own = tokenizer.eos_token_id
    if own is None:
        return frozenset()
    ids = own if isinstance(own, list) else [own]
    return frozenset(token_id for token_id in ids if isinstance(token_id, int) and token_id >= 0)

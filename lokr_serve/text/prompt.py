"""From a prompt to token ids, with everything refused that the model could not take."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lokr_serve.errors import InvalidRequestError, ModelError
from lokr_serve.types import ChatMessage, ChatPrompt, Prompt, TextPrompt, TokenPrompt

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
ROLES = ("system", "user", "assistant", "tool")
# Real text has 3 to 5 bytes to a token, and runs of one sign some 16. What exceeds this is refused
# before time is spent on it, although the tokenizer might have made it fit.
MAX_BYTES_PER_TOKEN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLimits:
    """What the model can take."""

    vocab_size: int
    max_prompt_tokens: int


class PromptEncoder:
    """Encodes prompts; may be used by several threads at once.

    Text gets the tokenizer's special tokens. A conversation gets those of the chat template, which
    ends it with the start of the assistant's turn. Token ids are used as they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast | None, limits: PromptLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt.

        Raises:
            InvalidRequestError: The prompt is empty, too long, malformed, or needs what the model
                does not have; ``field`` is its path in the request.
        """
        match prompt:
            case TokenPrompt():
                field, ids = "token_ids.ids", prompt.ids
            case TextPrompt():
                field, ids = "text", self._encode_text(prompt.text)
            case ChatPrompt():
                field, ids = "messages.messages", self._encode_chat(prompt.messages)
            case _:
                assert_never(prompt)
        self._check(field, ids)
        return ids

    def _encode_text(self, text: str) -> tuple[int, ...]:
        tokenizer = self._require_tokenizer("text")
        self._check_bytes("text", text)
        return tuple(tokenizer.backend_tokenizer.encode(text).ids)

    def _encode_chat(self, messages: tuple[ChatMessage, ...]) -> tuple[int, ...]:
        tokenizer = self._require_tokenizer("messages")
        if not tokenizer.chat_template:
            raise InvalidRequestError(
                "messages", "this model has no chat template; send text or token_ids"
            )
        _check_roles(messages)
        self._check_bytes("messages.messages", "".join(message.content for message in messages))
        text = _render(tokenizer, messages)
        return tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def _require_tokenizer(self, field: str) -> PreTrainedTokenizerFast:
        if self._tokenizer is None:
            raise InvalidRequestError(field, "this model has no tokenizer; send token_ids")
        return self._tokenizer

    def _check_bytes(self, field: str, text: str) -> None:
        num_bytes = len(text.encode())
        max_bytes = MAX_BYTES_PER_TOKEN * self._limits.max_prompt_tokens
        if num_bytes > max_bytes:
            raise InvalidRequestError(
                field,
                f"has {num_bytes} bytes, far more than the {self._limits.max_prompt_tokens} tokens "
                f"that this model takes; send at most {max_bytes} bytes",
            )

    def _check(self, field: str, ids: tuple[int, ...]) -> None:
        limits = self._limits
        if not ids:
            raise InvalidRequestError(field, "the prompt is empty; it needs at least one token")
        if len(ids) > limits.max_prompt_tokens:
            raise InvalidRequestError(
                field,
                f"the prompt has {len(ids)} tokens, but this model takes at most "
                f"{limits.max_prompt_tokens}; shorten it",
            )
        if min(ids) < 0 or max(ids) >= limits.vocab_size:
            at, token_id = next(
                (at, id_) for at, id_ in enumerate(ids) if not 0 <= id_ < limits.vocab_size
            )
            raise InvalidRequestError(
                f"{field}[{at}]" if field == "token_ids.ids" else field,
                f"token id {token_id} is not in the model's vocabulary of {limits.vocab_size}",
            )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer of a model folder, or None where it has none.

    Raises:
        ModelError: The tokenizer's files cannot be read, or it has no fast implementation.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ImportError, KeyError, OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which has no fast "
            "implementation; convert it to a tokenizer.json"
        )
    # A file can ask for prompts to be cut or padded, without a word; ours are refused or whole.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _check_roles(messages: tuple[ChatMessage, ...]) -> None:
    if not messages:
        raise InvalidRequestError("messages.messages", "a conversation needs at least one message")
    for at, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidRequestError(
                f"messages.messages[{at}].role",
                f"{message.role!r} is not a role; use one of {', '.join(ROLES)}",
            )


def _render(tokenizer: PreTrainedTokenizerFast, messages: tuple[ChatMessage, ...]) -> str:
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise InvalidRequestError(
            "messages.messages", f"the model's chat template refuses them: {error}"
        ) from error
    assert isinstance(text, str), "one conversation is rendered to one text"
    return text

"""What a request for text asks for."""

import re
from dataclasses import dataclass, field
from enum import Enum

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types.sampling import SamplingParams

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def is_request_id(text: str) -> bool:
    """Return whether ``text`` may name a request: it goes into logs and call metadata."""
    return _REQUEST_ID.fullmatch(text) is not None


def num_bytes(field: str, text: str) -> int:
    """Return the bytes of a text.

    Raises:
        InvalidRequestError: It is no whole text; ``field`` is its path in the request.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        problem = f"has half of a character at {error.start}; give it as UTF-8"
        raise InvalidRequestError(field, problem) from error


class ApplyMode(Enum):
    """How a request wants its mix applied."""

    AUTO = "auto"
    UNMERGED = "unmerged"
    MERGED = "merged"


class Priority(Enum):
    """Which requests go first when several wait; the higher value."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeight:
    """One adapter as a request names it."""

    adapter_id: str
    weight: float = 1.0
    module_weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Plain text; gets the tokenizer's special tokens.

    Raises:
        InvalidRequestError: It holds half of a character, as an argument that is no UTF-8 does.
    """

    text: str

    def __post_init__(self) -> None:
        """Check that it is a whole text."""
        num_bytes("text", self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str

    def __post_init__(self) -> None:
        """Check that both are whole texts."""
        num_bytes("messages.messages.role", self.role)
        num_bytes("messages.messages.content", self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, rendered with the tokenizer's chat template."""

    messages: tuple[ChatMessage, ...]


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for text; its parts are checked."""

    prompt: Prompt
    adapters: tuple[AdapterWeight, ...] = ()  # none is the base model
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = ""  # drawn by the server if empty
    apply_mode: ApplyMode = ApplyMode.AUTO
    priority: Priority = Priority.NORMAL

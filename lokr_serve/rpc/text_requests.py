"""From TextService's requests to the values of ``lokr_serve.types``, checked."""

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    is_request_id,
)
from lokr_serve.v1 import common_pb2, text_pb2

RequestMessage = text_pb2.GenerateRequest | text_pb2.GenerateOnceRequest


def generation_request(message: RequestMessage, default_request_id: str) -> GenerationRequest:
    """Read a request.

    Args:
        message: The request.
        default_request_id: The id for a request that does not bring its own.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    if message.request_id and not is_request_id(message.request_id):
        raise InvalidRequestError(
            "request_id", "must be at most 128 printable ASCII characters, without spaces"
        )
    return GenerationRequest(
        request_id=message.request_id or default_request_id,
        adapters=tuple(map(_adapter, message.adapters)),
        prompt=_prompt(message),
        sampling=_sampling(message.sampling),
        apply_mode=_apply_mode(message.apply_mode),
    )


def _adapter(message: common_pb2.AdapterWeight) -> AdapterWeight:
    """Read one part of a mix; the registry checks the parts together."""
    return AdapterWeight(
        adapter_id=message.adapter_id,
        weight=message.weight if message.HasField("weight") else 1.0,
        module_weights=tuple(sorted(message.module_weights.items())),
    )


def _prompt(message: RequestMessage) -> Prompt:
    match message.WhichOneof("prompt"):
        case "text":
            return TextPrompt(text=message.text)
        case "token_ids":
            return TokenPrompt(ids=tuple(message.token_ids.ids))
        case "messages":
            turns = message.messages.messages
            return ChatPrompt(
                messages=tuple(ChatMessage(role=turn.role, content=turn.content) for turn in turns)
            )
        case _:
            raise InvalidRequestError("prompt", "one of text, token_ids and messages must be set")


def _sampling(message: text_pb2.SamplingParams) -> SamplingParams:
    """Read the fields that are set; their names are those of SamplingParams."""
    lists = ("stop", "stop_token_ids")
    return SamplingParams(
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        **{field.name: value for field, value in message.ListFields() if field.name not in lists},
    )


def _apply_mode(value: common_pb2.ApplyMode) -> ApplyMode:
    match value:
        case common_pb2.APPLY_MODE_UNSPECIFIED | common_pb2.APPLY_MODE_AUTO:
            return ApplyMode.AUTO
        case common_pb2.APPLY_MODE_UNMERGED:
            return ApplyMode.UNMERGED
        case common_pb2.APPLY_MODE_MERGED:
            return ApplyMode.MERGED
        case _:
            raise InvalidRequestError("apply_mode", f"{value} is not a value of ApplyMode")

"""From TextService's requests to the values of ``lokr_serve.types``, checked."""

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.mix_fields import adapter_weights, apply_mode, priority, request_id
from lokr_serve.types import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from lokr_serve.v1 import text_pb2

RequestMessage = text_pb2.GenerateRequest | text_pb2.GenerateOnceRequest


def generation_request(message: RequestMessage, default_request_id: str) -> GenerationRequest:
    """Read a request.

    Args:
        message: The request.
        default_request_id: The id for a request that does not bring its own.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    return GenerationRequest(
        request_id=request_id(message.request_id, default_request_id),
        adapters=adapter_weights(message.adapters),
        prompt=_prompt(message),
        sampling=_sampling(message.sampling),
        apply_mode=apply_mode(message.apply_mode),
        priority=priority(message.priority),
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

"""Fields that every request to an engine has, and its first reply: id, mix, way of application."""

from collections.abc import Iterable

from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import AdapterWeight, ApplyMode, Priority, ResolvedAdapter, is_request_id
from lokr_serve.v1 import common_pb2


def request_id(text: str, default: str) -> str:
    """Read a request's id.

    Args:
        text: The id; empty for a request that does not bring its own.
        default: The id for such a request.
    """
    if text and not is_request_id(text):
        raise InvalidRequestError(
            "request_id", "must be at most 128 printable ASCII characters, without spaces"
        )
    return text or default


def adapter_weights(messages: Iterable[common_pb2.AdapterWeight]) -> tuple[AdapterWeight, ...]:
    """Read the parts of a mix; the registry checks them together."""
    return tuple(
        AdapterWeight(
            adapter_id=message.adapter_id,
            weight=message.weight if message.HasField("weight") else 1.0,
            module_weights=tuple(sorted(message.module_weights.items())),
        )
        for message in messages
    )


def apply_mode(value: common_pb2.ApplyMode) -> ApplyMode:
    """Read how a mix is to be applied."""
    match value:
        case common_pb2.APPLY_MODE_UNSPECIFIED | common_pb2.APPLY_MODE_AUTO:
            return ApplyMode.AUTO
        case common_pb2.APPLY_MODE_UNMERGED:
            return ApplyMode.UNMERGED
        case common_pb2.APPLY_MODE_MERGED:
            return ApplyMode.MERGED
        case _:
            raise InvalidRequestError("apply_mode", f"{value} is not a value of ApplyMode")


def priority(value: common_pb2.Priority) -> Priority:
    """Read which requests go first."""
    match value:
        case common_pb2.PRIORITY_UNSPECIFIED | common_pb2.PRIORITY_NORMAL:
            return Priority.NORMAL
        case common_pb2.PRIORITY_LOW:
            return Priority.LOW
        case common_pb2.PRIORITY_HIGH:
            return Priority.HIGH
        case _:
            raise InvalidRequestError("priority", f"{value} is not a value of Priority")


def resolved_messages(adapters: Iterable[ResolvedAdapter]) -> list[common_pb2.ResolvedAdapter]:
    """Write the parts of a mix as they were resolved."""
    return [
        common_pb2.ResolvedAdapter(
            adapter_id=adapter.adapter_id, version=adapter.version, weight=adapter.weight
        )
        for adapter in adapters
    ]

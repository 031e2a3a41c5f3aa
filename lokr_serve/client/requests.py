"""From the values of ``lokr_serve.types`` to requests and their metadata."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from lokr_core import AdapterMix, AdapterRef, MixPart, check_adapter_id
from lokr_serve.types import (
    AdapterWeight,
    ChatPrompt,
    GenerationRequest,
    ImageRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from lokr_serve.v1 import adapters_pb2, common_pb2, text_pb2

REQUEST_ID_KEY = "x-request-id"
ADAPTER_KEY = "x-lokr-adapter"  # gateways hash it, to send equal mixes to the same server

Metadata = tuple[tuple[str, str], ...]
GenerationMessage = TypeVar(
    "GenerationMessage", text_pb2.GenerateRequest, text_pb2.GenerateOnceRequest
)


def request_metadata(request_id: str = "") -> Metadata:
    """Return the metadata that every call has: its id, drawn if it is empty."""
    return ((REQUEST_ID_KEY, request_id or secrets.token_hex(8)),)


def generation_metadata(request: GenerationRequest | ImageRequest) -> Metadata:
    """Return the metadata of a generation, which names its mix unless that is the base model."""
    name = mix_name(request.adapters)
    mix = ((ADAPTER_KEY, name),) if name else ()
    return (*request_metadata(request.request_id), *mix)


def mix_name(adapters: Sequence[AdapterWeight]) -> str:
    """Return a mix's canonical name, as the server will.

    Raises:
        MixError: A weight is not finite, an adapter is named twice, or an id is none; not every
            text may stand in the metadata of a call.
    """
    parts = (
        MixPart(
            ref=AdapterRef(adapter_id=check_adapter_id(adapter.adapter_id), version=""),
            weight=adapter.weight,
            module_weights=tuple(sorted(adapter.module_weights)),
        )
        for adapter in adapters
    )
    return AdapterMix(tuple(parts)).name


def generation_message(
    kind: type[GenerationMessage], request: GenerationRequest
) -> GenerationMessage:
    """Write a request for text, streamed or not."""
    prompt = request.prompt
    return kind(
        request_id=request.request_id,
        adapters=map(adapter_message, request.adapters),
        text=prompt.text if isinstance(prompt, TextPrompt) else None,
        token_ids=text_pb2.TokenIds(ids=prompt.ids) if isinstance(prompt, TokenPrompt) else None,
        messages=_chat_message(prompt) if isinstance(prompt, ChatPrompt) else None,
        sampling=_sampling_message(request.sampling),
        apply_mode=f"APPLY_MODE_{request.apply_mode.name}",
        priority=f"PRIORITY_{request.priority.name}",
    )


def adapter_message(adapter: AdapterWeight) -> common_pb2.AdapterWeight:
    """Write one part of a mix."""
    return common_pb2.AdapterWeight(
        adapter_id=adapter.adapter_id,
        weight=adapter.weight,
        module_weights=dict(adapter.module_weights),
    )


def _chat_message(prompt: ChatPrompt) -> text_pb2.ChatMessages:
    return text_pb2.ChatMessages(
        messages=[
            text_pb2.ChatMessage(role=message.role, content=message.content)
            for message in prompt.messages
        ]
    )


def _sampling_message(sampling: SamplingParams) -> text_pb2.SamplingParams:
    """Write the values that are not the defaults; their names are those of the message."""
    defaults = asdict(SamplingParams())
    given = {name: value for name, value in asdict(sampling).items() if value != defaults[name]}
    return text_pb2.SamplingParams(**given)


def load_message(spec: LoadSpec) -> adapters_pb2.LoadAdapterRequest:
    """Write a request to load an adapter."""
    return adapters_pb2.LoadAdapterRequest(
        adapter_id=spec.adapter_id,
        source=spec.source,
        replace=spec.replace,
        pinned=spec.pinned,
        ttl=duration(spec.ttl_seconds),
        digest=spec.digest or "",
        **asdict(spec.overrides),
    )


def unload_message(
    adapter_id: str, *, drain_seconds: float | None, force: bool
) -> adapters_pb2.UnloadAdapterRequest:
    """Write a request to unload an adapter."""
    return adapters_pb2.UnloadAdapterRequest(
        adapter_id=adapter_id, drain_timeout=duration(drain_seconds), force=force
    )


def update_message(
    adapter_id: str, *, pinned: bool | None, ttl_seconds: float | None
) -> adapters_pb2.UpdateAdapterRequest:
    """Write a request to change how an adapter is kept."""
    return adapters_pb2.UpdateAdapterRequest(
        adapter_id=adapter_id, pinned=pinned, ttl=duration(ttl_seconds)
    )


def duration(seconds: float | None) -> Duration | None:
    """Write a duration; None stays unset."""
    if seconds is None:
        return None
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message

"""From replies to the values of ``lokr_serve.types``."""

from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1.health_pb2 import HealthCheckResponse

from lokr_serve.client.results import Completion, Health
from lokr_serve.types import (
    AdapterFailure,
    AdapterState,
    AdapterStatus,
    ApplyMode,
    Chunk,
    Finished,
    FinishReason,
    ResolvedAdapter,
    ScaleReport,
    Started,
    Timing,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from lokr_serve.v1 import adapters_pb2, common_pb2, text_pb2


def event(message: text_pb2.GenerateResponse) -> Started | Chunk | Finished:
    """Read one event of a stream."""
    match message.WhichOneof("event"):
        case "started":
            return started(message.started)
        case "chunk":
            return chunk(message.chunk)
        case _:
            return finished(message.finished)


def completion(message: text_pb2.GenerateOnceResponse) -> Completion:
    """Read a whole reply."""
    return Completion(
        started=started(message.started),
        chunks=tuple(map(chunk, message.chunks)),
        finished=tuple(map(finished, message.finished)),
    )


def started(message: text_pb2.Started) -> Started:
    """Read how a request was admitted."""
    return Started(
        request_id=message.request_id,
        prompt_tokens=message.prompt_tokens,
        adapters=resolved_adapters(message.adapters),
        mix_name=message.mix_name,
        apply_mode=apply_mode(message.apply_mode),
        seed=message.seed,
    )


def resolved_adapters(
    messages: Iterable[common_pb2.ResolvedAdapter],
) -> tuple[ResolvedAdapter, ...]:
    """Read the parts of a mix as they were resolved."""
    return tuple(
        ResolvedAdapter(
            adapter_id=message.adapter_id, version=message.version, weight=message.weight
        )
        for message in messages
    )


def apply_mode(value: common_pb2.ApplyMode) -> ApplyMode:
    """Read how a mix is applied."""
    return ApplyMode[common_pb2.ApplyMode.Name(value).removeprefix("APPLY_MODE_")]


def chunk(message: text_pb2.Chunk) -> Chunk:
    """Read new tokens."""
    return Chunk(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(map(_logprob, message.logprobs)),
    )


def _logprob(message: text_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token_id=message.token_id,
        logprob=message.logprob,
        top=tuple(TopLogprob(token_id=top.token_id, logprob=top.logprob) for top in message.top),
    )


def finished(message: text_pb2.Finished) -> Finished:
    """Read the end of a sequence."""
    reason = text_pb2.FinishReason.Name(message.reason)
    usage, timing = message.usage, message.timing
    return Finished(
        index=message.index,
        reason=FinishReason[reason.removeprefix("FINISH_REASON_")],
        stop=_stop(message.stop),
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            completion_tokens=usage.completion_tokens,
        ),
        timing=Timing(
            queue_seconds=seconds(timing.queue),
            first_token_seconds=seconds(timing.first_token),
            total_seconds=seconds(timing.total),
        ),
    )


def _stop(message: text_pb2.MatchedStop) -> str | int | None:
    match message.WhichOneof("match"):
        case "text":
            return message.text
        case "token_id":
            return message.token_id
        case _:
            return None


def adapter_status(message: adapters_pb2.Adapter) -> AdapterStatus:
    """Read an adapter."""
    state = adapters_pb2.AdapterState.Name(message.state)
    return AdapterStatus(
        adapter_id=message.adapter_id,
        version=message.version,
        digest=message.digest,
        state=AdapterState[state.removeprefix("ADAPTER_STATE_")],
        source=message.source,
        format=message.format,
        algorithms=tuple(message.algorithms),
        num_modules=message.num_modules,
        num_parameters=message.num_parameters,
        device_bytes=message.device_bytes,
        host_bytes=message.host_bytes,
        scales=tuple(
            ScaleReport(source=scale.source, num_modules=scale.num_modules)
            for scale in message.scales
        ),
        in_flight=message.in_flight,
        pinned=message.pinned,
        created=_moment(message.created),
        last_used=_moment(message.last_used) if message.HasField("last_used") else None,
        warnings=tuple(message.warnings),
        aliases=tuple(message.aliases),
        is_declared=message.declared,
        ttl_seconds=seconds(message.ttl),
        error=_failure(message.error) if message.HasField("error") else None,
    )


def _failure(message: adapters_pb2.AdapterFailure) -> AdapterFailure:
    return AdapterFailure(reason=message.reason, message=message.message)


def seconds(duration: Duration) -> float:
    """Read a duration."""
    return duration.ToNanoseconds() / 1e9


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def health(message: HealthCheckResponse) -> Health:
    """Read the health of a server."""
    is_serving = message.status == HealthCheckResponse.SERVING
    return Health.SERVING if is_serving else Health.NOT_SERVING

"""Between AdapterService's messages and the values of ``lokr_serve.types``."""

from lokr_serve.errors import InvalidRequestError
from lokr_serve.rpc.conversion.fields import duration_message, finite, seconds, timestamp_message
from lokr_serve.types import (
    AdapterFailure,
    AdapterOverrides,
    AdapterStatus,
    LoadSpec,
    sha256_digest,
)
from lokr_serve.v1 import adapters_pb2

_OVERRIDES = ("partial", "scale_override", "alpha", "rank")


def load_spec(message: adapters_pb2.LoadAdapterRequest) -> LoadSpec:
    """Read a request to load an adapter; the registry checks the id and the time to live.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the message.
    """
    if not message.source:
        raise InvalidRequestError("source", "must name a path in the adapter folder, or a URI")
    return LoadSpec(
        adapter_id=message.adapter_id,
        source=message.source,
        replace=message.replace,
        pinned=message.pinned,
        ttl_seconds=seconds(message.ttl) if message.HasField("ttl") else None,
        digest=_digest(message.digest),
        overrides=adapter_overrides(message),
    )


def _digest(text: str) -> str | None:
    if not text:
        return None
    if (digest := sha256_digest(text)) is None:
        raise InvalidRequestError("digest", "must be a SHA-256 of 64 hex digits")
    return digest


def adapter_overrides(
    message: adapters_pb2.LoadAdapterRequest | adapters_pb2.UploadHeader, prefix: str = ""
) -> AdapterOverrides:
    """Read the fields that are set; their names are those of AdapterOverrides.

    Args:
        message: What has the fields.
        prefix: Of the paths of its fields in the request.

    Raises:
        InvalidRequestError: A field can never be right; ``field`` is its path in the request.
    """
    overrides = AdapterOverrides(
        **{field.name: value for field, value in message.ListFields() if field.name in _OVERRIDES}
    )
    if overrides.scale_override is not None:
        finite(f"{prefix}scale_override", overrides.scale_override)
    if overrides.alpha is not None:
        finite(f"{prefix}alpha", overrides.alpha)
    if overrides.rank == 0:
        raise InvalidRequestError(f"{prefix}rank", "must be at least 1")
    return overrides


def adapter_message(status: AdapterStatus) -> adapters_pb2.Adapter:
    """Write an adapter."""
    return adapters_pb2.Adapter(
        adapter_id=status.adapter_id,
        version=status.version,
        digest=status.digest,
        state=f"ADAPTER_STATE_{status.state.name}",
        source=status.source,
        format=status.format,
        algorithms=status.algorithms,
        num_modules=status.num_modules,
        num_parameters=status.num_parameters,
        device_bytes=status.device_bytes,
        host_bytes=status.host_bytes,
        scales=[
            adapters_pb2.ScaleSource(source=scale.source, num_modules=scale.num_modules)
            for scale in status.scales
        ],
        in_flight=status.in_flight,
        pinned=status.pinned,
        created=timestamp_message(status.created),
        last_used=None if status.last_used is None else timestamp_message(status.last_used),
        warnings=status.warnings,
        aliases=status.aliases,
        declared=status.is_declared,
        ttl=duration_message(status.ttl_seconds) if status.ttl_seconds else None,
        error=None if status.error is None else _failure_message(status.error),
    )


def _failure_message(failure: AdapterFailure) -> adapters_pb2.AdapterFailure:
    return adapters_pb2.AdapterFailure(reason=failure.reason, message=failure.message)

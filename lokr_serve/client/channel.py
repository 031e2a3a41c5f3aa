"""How channels to a server are set up: message sizes, keepalive and retries."""

import json
from collections.abc import Sequence

DEFAULT_TIMEOUT_SECONDS = 300.0
MAX_TIMEOUT_SECONDS = 1e9  # 30 years; grpc counts nanoseconds in 64 bits, and wraps
MAX_MESSAGE_BYTES = 32 * 1024 * 1024  # what a server sends at most by default
MAX_RETRIED_BYTES = 16 * 1024 * 1024  # of one request: what a server takes at most by default

# Calls that may be made again: before the first reply nothing has come of them, or making them
# twice is the same as once. UnloadAdapter is not one: it may have been done.
_RETRIED = {
    "lokr_serve.v1.TextService": ("Generate", "GenerateOnce"),
    "lokr_serve.v1.ImageService": ("GenerateImage",),
    "lokr_serve.v1.AdapterService": (
        "LoadAdapter",
        "GetAdapter",
        "ListAdapters",
        "UpdateAdapter",
    ),
}
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # Not CANCELLED: with it grpc 1.85 loses the end of calls that the client itself cancels, or
    # whose deadline passes, while a server goes away, and who waits for one waits for ever.
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def channel_options() -> Sequence[tuple[str, int | str]]:
    """Return the options of a channel."""
    return (
        ("grpc.service_config", json.dumps(_service_config())),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # Of a request larger than this, 256 KiB by default, grpc would not make another attempt.
        ("grpc.per_rpc_retry_buffer_size", MAX_RETRIED_BYTES),
        ("grpc.keepalive_time_ms", 30_000),  # find a server that is gone during a long silence
        ("grpc.keepalive_timeout_ms", 20_000),
    )


def deadline(timeout_seconds: float) -> float | None:
    """Return what grpc is told of a timeout: None where it is longer than it can count."""
    return timeout_seconds if timeout_seconds <= MAX_TIMEOUT_SECONDS else None


def _service_config() -> dict[str, object]:
    names = [
        {"service": service, "method": method}
        for service, methods in _RETRIED.items()
        for method in methods
    ]
    return {"methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}]}

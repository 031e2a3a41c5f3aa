"""What gRPC's core is told of a listener: sizes, pings, and what one stranger may take."""

from collections.abc import Sequence

from lokr_serve.config import ServerSettings

HANDSHAKE_SECONDS = 20.0  # of TCP, TLS and HTTP/2; what opens connections and is silent goes then
CONNECTION_GRACE_SECONDS = 3600.0  # for calls of a connection that is to close; longer than any
# Of a call, tokens and traces included. Core refuses at random between two bounds: here equal.
MAX_METADATA_BYTES = 16 * 1024
# Calls of all connections that wait to be taken up, at some 16 KiB each. Core cancels what comes
# beyond, whoever sends it; of calls that are taken up, those of a flood alone are refused.
MAX_WAITING_CALLS = 8192


def listener_options(settings: ServerSettings) -> Sequence[tuple[str, int]]:
    """Return the options of a server."""
    return (
        ("grpc.so_reuseport", 0),  # else a second server takes the same port without a word
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.max_send_message_length", settings.max_send_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1000)),
        # Find clients that are gone, so that their rows are freed; and let clients that wait
        # through a long silence ping every 10 s.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        *_age(settings.max_connection_seconds),
    )


def _age(max_seconds: float | None) -> Sequence[tuple[str, int]]:
    """Return when connections are closed, so that clients spread anew and prove themselves anew."""
    if max_seconds is None:
        return ()
    return (
        ("grpc.max_connection_age_ms", round(max_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(CONNECTION_GRACE_SECONDS * 1000)),
    )

"""Calls with bare bytes, as a stranger makes them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc

from lokr_serve.client import ClientError
from lokr_serve.client.errors import client_error
from tests.serve.security.pki import token_of

Metadata = tuple[tuple[str, str], ...]


def bearer(name: str) -> Metadata:
    """Return the metadata that a client of the file calls with."""
    return (("authorization", f"Bearer {token_of(name)}"),)


@contextmanager
def channel_to(address: str) -> Iterator[grpc.Channel]:
    """Connect without TLS; nothing is tried twice."""
    with grpc.insecure_channel(address, options=(("grpc.enable_retries", 0),)) as channel:
        yield channel


def failure(
    channel: grpc.Channel, path: str, metadata: Metadata = (), messages: Iterable[bytes] = ()
) -> ClientError:
    """Call a method with raw messages, and return the error that the call ends with."""
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
    call = method(iter(messages), metadata=metadata, timeout=20)
    try:
        replies = list(call)
    except grpc.RpcError as error:
        return client_error(error)
    raise AssertionError(f"{path} was answered with {len(replies)} replies")


def code_of(
    channel: grpc.Channel, path: str, metadata: Metadata = (), messages: Iterable[bytes] = ()
) -> grpc.StatusCode:
    """Return the code of such an error."""
    return failure(channel, path, metadata, messages).code

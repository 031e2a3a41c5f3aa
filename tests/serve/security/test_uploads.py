"""Uploads of callers that are known: each can skip only what it has sent itself."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from lokr_serve.app import Addresses
from tests.serve.rpc.uploading import OFFSET_KEY, Sent
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.calling import bearer, channel_to
from tests.serve.security.pki import write_clients

CLIENTS = {
    "owner": 'permissions = ["admin"]\nadapters = ["owner/*"]',
    "thief": 'permissions = ["admin"]\nadapters = ["thief/*"]',
}
PATH = "/lokr_serve.v1.AdapterService/UploadAdapter"


@pytest.fixture
def addresses(model_folder: Path, tmp_path: Path) -> Iterator[Addresses]:
    """A server that takes uploads of two clients."""
    settings = tiny_settings(
        model_folder,
        None,
        adapters={"uploads": tmp_path / "uploads"},
        security={"clients": write_clients(tmp_path / "clients.toml", **CLIENTS)},
    )
    with running_server(settings) as server:
        yield server.ready.result()


def upload(addresses: Addresses, name: str, sent: Sent, num_bytes: int) -> tuple[int, str]:
    """Send the end of a file, of so many bytes; return the offset that was told, and the code."""
    frames = [sent.header(adapter_id=f"{name}/a"), *sent.chunks(len(sent.content) - num_bytes)]
    with channel_to(addresses.admin_listen) as channel:
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATH)
        messages = iter([frame.SerializeToString() for frame in frames])
        call = method(messages, metadata=bearer(name), timeout=20)
        offset = int(dict(call.initial_metadata())[OFFSET_KEY])
        with suppress(grpc.RpcError):
            list(call)
        return offset, call.code().name


def test_who_knows_a_digest_cannot_register_a_file_that_another_has_sent(
    addresses: Addresses, adapter_folder: Path
) -> None:
    """It would go around what a client may load from, and read what is not its own."""
    poet = Sent.of(adapter_folder / "poet")
    size = len(poet.content)

    assert upload(addresses, "owner", poet, size) == (0, "OK")
    assert upload(addresses, "thief", poet, 0) == (0, "INVALID_ARGUMENT")
    assert upload(addresses, "thief", poet, 1) == (0, "INVALID_ARGUMENT")
    assert upload(addresses, "thief", poet, size - 1) == (1, "DATA_LOSS")
    assert upload(addresses, "owner", poet, 0) == (size, "OK")
    assert upload(addresses, "thief", poet, size) == (0, "OK")  # who has the file may have it
    assert upload(addresses, "thief", poet, 0) == (size, "OK")

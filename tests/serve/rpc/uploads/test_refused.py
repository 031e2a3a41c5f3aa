"""Uploads that are refused, or ended, and leave nothing behind."""

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from lokr_serve.client import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from lokr_serve.rpc.servicers import upload
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest
from tests.serve.rpc.uploading import Sent, fall_silent, is_busy, kept, send, sending, until
from tests.serve.rpc.uploads.conftest import MAX_FILE_BYTES
from tests.serve.running import Connection


def test_a_file_that_does_not_load_is_neither_registered_nor_kept(
    server: Connection, uploads: Path, poet: Sent
) -> None:
    """A failed upload leaves no trace, and its message names no path of the server."""
    wrong = Sent(content=b"{" * 5000, config=poet.config)

    with pytest.raises(FailedPreconditionError, match="upload:") as caught:
        send(server.adapters, wrong.header(), *wrong.chunks())

    assert str(uploads) not in str(caught.value)
    assert not kept(uploads)
    with pytest.raises(NotFoundError):
        server.admin.get_adapter("sent")


def test_content_of_another_digest_is_refused_and_dropped(
    server: Connection, uploads: Path, poet: Sent
) -> None:
    """A file that changed on its way must not be served, nor stay in the way of the right one."""
    with pytest.raises(DataLossError) as caught:
        send(server.adapters, poet.header(digest="ab" * 32), *poet.chunks())

    assert (caught.value.reason, caught.value.field) == ("DIGEST_MISMATCH", "digest")
    assert not kept(uploads)


CHUNK = UploadAdapterRequest(chunk=b"x")
EMPTY = UploadAdapterRequest(chunk=b"")
NOTHING = UploadAdapterRequest()


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        (lambda poet: [], "first frame must be a header"),
        (lambda poet: [CHUNK, poet.header()], "first frame must be a header"),
        (lambda poet: [NOTHING], "first frame must be a header"),
        (lambda poet: [poet.header(), poet.header()], "only chunks may follow"),
        (lambda poet: [poet.header(), NOTHING], "only chunks may follow"),
        (lambda poet: [poet.header(), EMPTY], "must not be empty"),
        (lambda poet: [poet.header(), *poet.chunks(), CHUNK], "more bytes came"),
        (lambda poet: [poet.header(), *poet.chunks(end=-1)], "only .* of the .* bytes announced"),
    ],
)
def test_frames_that_are_not_what_was_announced_are_refused(
    server: Connection,
    uploads: Path,
    poet: Sent,
    frames: Callable[[Sent], list[UploadAdapterRequest]],
    problem: str,
) -> None:
    """A client that miscounts must learn so at once, and nothing of it may be registered."""
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        send(server.adapters, *frames(poet))

    assert caught.value.reason == "UPLOAD"
    assert all(name.endswith(".part") for name in kept(uploads))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"adapter_id": ""}, "header.adapter_id"),
        ({"adapter_id": "a/../b"}, "header.adapter_id"),
        ({"digest": ""}, "header.digest"),
        ({"digest": "../../etc/passwd"}, "header.digest"),
        ({"size_bytes": 0}, "header.size_bytes"),
        ({"size_bytes": MAX_FILE_BYTES + 1}, "header.size_bytes"),
        ({"size_bytes": 2**64 - 1}, "header.size_bytes"),
        ({"config_json": "{"}, "header.config_json"),
        ({"config_json": "[]"}, "header.config_json"),
        ({"config_json": f'{{"a": "{"x" * (4 << 20)}"}}'}, "header.config_json"),
        ({"ttl": timedelta(seconds=-1)}, "header.ttl"),
        ({"rank": 0}, "header.rank"),
        ({"alpha": float("nan")}, "header.alpha"),
        ({"scale_override": float("inf")}, "header.scale_override"),
    ],
)
def test_a_header_that_can_never_be_right_is_refused_by_field(
    server: Connection, uploads: Path, poet: Sent, fields: dict[str, object], field: str
) -> None:
    """Before a byte of the file is read, or a place on the disk taken."""
    with pytest.raises(InvalidArgumentError) as caught:
        send(server.adapters, poet.header(**fields))

    assert caught.value.field == field
    assert not kept(uploads)


def test_a_file_is_received_by_one_call_at_a_time(
    server: Connection, poet: Sent, adapter_folder: Path
) -> None:
    """Two that write one file would spoil it; the second may try again."""
    with sending(server.adapters, poet.header(), *poet.chunks()) as done:
        with pytest.raises(AbortedError) as caught:
            send(server.adapters, poet.header(adapter_id="other"))
        done.set_result(None)
        again = server.admin.upload_adapter("other", adapter_folder / "poet")

    assert caught.value.reason == "UPLOAD_BUSY"
    assert again.digest == poet.digest


def test_a_silent_client_does_not_keep_room_for_ever(
    server: Connection, poet: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone could fill the budget by announcing files and sending nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(upload, "MAX_SILENCE_SECONDS", 0.2)
        for frames in ([], [poet.header()]):
            with pytest.raises(DeadlineExceededError, match="no frame came"):
                fall_silent(server.adapters, *frames)

    until(lambda: not is_busy(server.adapters, poet))


def test_a_full_disk_ends_the_call_and_is_not_left_full(
    server: Connection, uploads: Path, poet: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client learns which resource is exhausted; others get their bytes back."""
    pwrite = os.pwrite

    def until_full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:300], offset)

    monkeypatch.setattr(os, "pwrite", until_full)

    with pytest.raises(ResourceExhaustedError, match="disk is full") as caught:
        send(server.adapters, poet.header(), *poet.chunks())

    assert caught.value.reason == "STORAGE_FULL"
    assert not kept(uploads)


def test_uploads_belong_to_the_admin_listener(server: Connection, adapter_folder: Path) -> None:
    """They change adapters."""
    with pytest.raises(PermissionDeniedError, match="admin listener"):
        server.client.upload_adapter("sent", adapter_folder / "poet")

"""Uploads through a real channel: whole ones, those that break off, and those that are refused."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lokr_serve.client import (
    AbortedError,
    AlreadyExistsError,
    AsyncClient,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from lokr_serve.rpc import upload
from lokr_serve.types import (
    AdapterOverrides,
    AdapterState,
    AdapterWeight,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
    UploadOptions,
)
from lokr_serve.v1.adapters_pb2 import UploadAdapterRequest
from tests.serve.rpc.uploading import CONFIG, TENSORS, Sent, break_off, kept, send, sending, until
from tests.serve.running import Connection, connected, running_server, tiny_settings

REPLACE = UploadOptions(replace=True)
MAX_FILE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def poet(adapter_folder: Path) -> Sent:
    """The adapter ``poet``."""
    return Sent.of(adapter_folder / "poet")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that uploads are kept in."""
    return tmp_path_factory.mktemp("kept") / "uploads"


@pytest.fixture(scope="module")
def one_server(model_folder: Path, adapter_folder: Path, uploads: Path) -> Iterator[Connection]:
    """A server that takes uploads."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        adapters={"uploads": uploads, "max_file_bytes": MAX_FILE_BYTES},
    )
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


@pytest.fixture
def server(one_server: Connection, uploads: Path) -> Iterator[Connection]:
    """The server, which has no upload before and after."""
    yield one_server
    for adapter in one_server.admin.list_adapters():
        if adapter.source.startswith("upload:"):
            one_server.admin.unload_adapter(adapter.adapter_id)
    for part in uploads.glob("*.part"):
        part.unlink()
    until(lambda: not kept(uploads))


def offsets(told: list[tuple[int, int]]) -> Callable[[int, int], None]:
    """Return a callback that notes what it is told of the progress."""
    return lambda sent_bytes, num_bytes: told.append((sent_bytes, num_bytes))


def tokens_with(server: Connection, adapter_id: str) -> tuple[int, ...]:
    """Return the tokens that an adapter makes likeliest."""
    request = GenerationRequest(
        prompt=TextPrompt(text="x"),
        adapters=(AdapterWeight(adapter_id=adapter_id),),
        sampling=SamplingParams(max_tokens=8, temperature=0, ignore_eos=True),
    )
    return server.client.generate_once(request).chunks[0].token_ids


def test_an_uploaded_adapter_is_the_one_that_was_sent(
    server: Connection, adapter_folder: Path
) -> None:
    """The same bytes and the same configuration must make the same adapter."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "poet")
    loaded = server.admin.load_adapter(LoadSpec(adapter_id="poet", source="poet"))

    assert sent.state is AdapterState.READY
    assert (sent.format, sent.version, sent.digest) == ("peft", loaded.version, loaded.digest)
    assert sent.source.startswith(f"upload:{sent.digest}-")
    assert tokens_with(server, "sent") == tokens_with(server, "poet")


def test_a_file_without_configuration_goes_as_it_is(
    server: Connection, adapter_folder: Path
) -> None:
    """Most files of the trainers are whole without one."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "lyco.safetensors")

    assert (sent.format, sent.source) == ("lycoris", f"upload:{sent.digest}")


def test_options_are_those_of_a_load(server: Connection, adapter_folder: Path) -> None:
    """An upload registers as a load does."""
    options = UploadOptions(
        pinned=True, ttl_seconds=500, overrides=AdapterOverrides(scale_override=2.0)
    )

    sent = server.admin.upload_adapter("sent", adapter_folder / "poet", options)

    assert (sent.pinned, sent.ttl_seconds) == (True, 500)
    assert {scale.source for scale in sent.scales} == {"scale_override"}


def test_nobody_else_on_the_machine_may_read_uploads(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """They are somebody's work."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "poet")
    folder = uploads / sent.source.removeprefix("upload:")

    modes = [path.stat().st_mode & 0o777 for path in (uploads, folder)]
    file_modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert modes == [0o700, 0o700]
    assert file_modes == {TENSORS: 0o600, CONFIG: 0o600, "sent-by-anyone": 0o600}


def test_a_client_that_knows_nothing_of_offsets_may_send_all_at_once(
    server: Connection, poet: Sent
) -> None:
    """The simplest client works as long as nothing has broken off before."""
    assert send(server.adapters, poet.header(), *poet.chunks()) == 0
    assert server.admin.get_adapter("sent").digest == poet.digest


def test_an_upload_that_broke_off_goes_on_where_it_was(
    server: Connection, uploads: Path, adapter_folder: Path, poet: Sent
) -> None:
    """A gigabyte over a slow line must not start again at every hiccup."""
    break_off(server.adapters, poet, uploads, 3000)
    told: list[tuple[int, int]] = []

    server.admin.upload_adapter("sent", adapter_folder / "poet", progress=offsets(told))

    assert told[0] == (3000, len(poet.content))
    assert told[-1] == (len(poet.content), len(poet.content))
    assert kept(uploads) == [server.admin.get_adapter("sent").source.removeprefix("upload:")]


async def test_the_asyncio_client_goes_on_as_well(
    server: Connection, uploads: Path, adapter_folder: Path, poet: Sent
) -> None:
    """Two clients, one behaviour, also in what they raise."""
    break_off(server.adapters, poet, uploads, 2000)
    told: list[tuple[int, int]] = []
    async with AsyncClient(server.addresses.admin_listen) as admin:
        folder = str(adapter_folder / "poet")
        sent = await admin.upload_adapter("sent", folder, progress=offsets(told))
        with pytest.raises(AlreadyExistsError):
            await admin.upload_adapter("sent", adapter_folder / "pirate")
        with pytest.raises(InvalidArgumentError) as caught:
            await admin.upload_adapter("no//id", adapter_folder / "pirate")

    assert told[0] == (2000, len(poet.content))
    assert sent.digest == poet.digest
    assert caught.value.field == "header.adapter_id"


def test_a_spoilt_part_is_found_out_and_sent_again(
    server: Connection, uploads: Path, adapter_folder: Path, poet: Sent
) -> None:
    """The hash over what was there is made of the disk's bytes, so that no damage is served."""
    break_off(server.adapters, poet, uploads, 3000)
    (uploads / f"{poet.digest}.part").write_bytes(b"x" * 3000)
    told: list[tuple[int, int]] = []

    server.admin.upload_adapter("sent", adapter_folder / "poet", progress=offsets(told))

    assert [sent_bytes for sent_bytes, _ in told if sent_bytes in (0, 3000)] == [3000, 0]
    assert server.admin.get_adapter("sent").digest == poet.digest


def test_a_part_that_is_too_long_is_begun_anew(
    server: Connection, uploads: Path, poet: Sent
) -> None:
    """No file of this digest has more bytes than its size."""
    (uploads / f"{poet.digest}.part").write_bytes(b"x" * (len(poet.content) + 1))

    assert send(server.adapters, poet.header(), *poet.chunks()) == 0


def test_a_part_that_is_a_link_is_not_followed(
    server: Connection, uploads: Path, poet: Sent, tmp_path: Path
) -> None:
    """Whoever can write to the folder must not make the server write elsewhere."""
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    (uploads / f"{poet.digest}.part").symlink_to(target)

    assert send(server.adapters, poet.header(), *poet.chunks()) == 0
    assert target.read_bytes() == b"mine"


def test_content_that_is_stored_need_not_come_again(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """One file serves as many ids as use it, and goes with the last of them."""
    told: list[tuple[int, int]] = []
    first = server.admin.upload_adapter("sent", adapter_folder / "poet")
    second = server.admin.upload_adapter("again", adapter_folder / "poet", progress=offsets(told))
    third = server.admin.load_adapter(LoadSpec(adapter_id="third", source=first.source))
    server.admin.unload_adapter("sent")
    server.admin.unload_adapter("third")

    assert len(told) == 1
    assert told[0][0] == told[0][1]
    assert first.source == second.source == third.source
    assert kept(uploads) == [first.source.removeprefix("upload:")]
    server.admin.unload_adapter("again")
    until(lambda: not kept(uploads))


def test_a_stored_file_that_was_spoilt_is_sent_again(
    server: Connection, uploads: Path, adapter_folder: Path, poet: Sent
) -> None:
    """Sending a file anew is how an operator repairs a disk's damage."""
    sent = server.admin.upload_adapter("sent", adapter_folder / "poet")
    file = uploads / sent.source.removeprefix("upload:") / TENSORS
    file.write_bytes(poet.content[:-1] + bytes([poet.content[-1] ^ 1]))

    with pytest.raises(DataLossError):
        server.admin.load_adapter(LoadSpec(adapter_id="other", source=sent.source))
    server.admin.upload_adapter("sent", adapter_folder / "poet")

    assert file.read_bytes() == poet.content
    assert server.admin.load_adapter(LoadSpec(adapter_id="other", source=sent.source))


def test_an_upload_replaces_only_when_told_and_leaves_no_file_behind(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Nobody's adapter changes by accident, and what is no longer used takes no room."""
    first = server.admin.upload_adapter("sent", adapter_folder / "poet")

    with pytest.raises(AlreadyExistsError):
        server.admin.upload_adapter("sent", adapter_folder / "pirate")
    assert kept(uploads) == [first.source.removeprefix("upload:")]

    second = server.admin.upload_adapter("sent", adapter_folder / "pirate", REPLACE)
    assert second.version != first.version
    until(lambda: kept(uploads) == [second.source.removeprefix("upload:")])


def test_unloading_never_deletes_a_source_file(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Only what came by an upload is the server's own."""
    server.admin.load_adapter(LoadSpec(adapter_id="sent", source="poet"))
    again = server.admin.upload_adapter("sent", adapter_folder / "poet")

    server.admin.unload_adapter("sent")

    assert again.source == "poet"  # its content was there already
    assert (adapter_folder / "poet" / TENSORS).exists()
    assert not kept(uploads)


def test_an_upload_that_expires_takes_its_file_along(
    server: Connection, uploads: Path, adapter_folder: Path
) -> None:
    """Nothing could name it any more."""
    server.admin.upload_adapter("sent", adapter_folder / "poet", UploadOptions(ttl_seconds=0.01))

    until(lambda: not kept(uploads))
    with pytest.raises(NotFoundError):
        server.admin.get_adapter("sent")


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


def test_a_client_that_ignores_the_offset_is_told_and_works_the_next_time(
    server: Connection, uploads: Path, poet: Sent
) -> None:
    """What is sent twice cannot be put together; the part goes, so that the next call can."""
    break_off(server.adapters, poet, uploads, 3000)
    until(lambda: not is_busy(server, poet))

    with pytest.raises(InvalidArgumentError, match="held 3000 of them already"):
        send(server.adapters, poet.header(), *poet.chunks())
    assert not kept(uploads)

    assert send(server.adapters, poet.header(), *poet.chunks()) == 0


def is_busy(server: Connection, sent: Sent) -> bool:
    """Whether the server still receives a file; asks with a header and nothing else."""
    try:
        send(server.adapters, sent.header())
    except AbortedError:
        return True
    except InvalidArgumentError:
        pass
    return False


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
    monkeypatch.setattr(upload, "MAX_SILENCE_SECONDS", 0.05)

    with sending(server.adapters, poet.header()):
        until(lambda: not is_busy(server, poet))

    with pytest.raises(DeadlineExceededError, match="no frame came"), sending(server.adapters):
        pass


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


def test_a_restart_loses_neither_a_part_nor_a_whole_file(
    model_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    """What a client has sent once it need not send again."""
    poet, pirate = (Sent.of(adapter_folder / name) for name in ("poet", "pirate"))
    folder = tmp_path / "uploads"
    settings = tiny_settings(model_folder, None, adapters={"uploads": folder})
    with running_server(settings) as first, connected(first.ready.result()) as connection:
        whole = connection.admin.upload_adapter("whole", adapter_folder / "poet")
        break_off(connection.adapters, pirate, folder, 1000)
    halfway = folder / f"{pirate.digest}.new"  # what a crash at the last step leaves
    halfway.mkdir()
    shutil.move(folder / f"{pirate.digest}.part", halfway / TENSORS)
    told: list[tuple[int, int]] = []
    with running_server(settings) as second, connected(second.ready.result()) as connection:
        loaded = connection.admin.load_adapter(LoadSpec(adapter_id="a", source=whole.source))
        connection.admin.upload_adapter("b", adapter_folder / "poet", progress=offsets(told))
        connection.admin.upload_adapter("c", adapter_folder / "pirate", progress=offsets(told))

    assert loaded.version == whole.version
    assert told[0] == (len(poet.content), len(poet.content))
    assert told[1] == (1000, len(pirate.content))

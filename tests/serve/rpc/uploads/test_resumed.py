"""Uploads that break off, or whose bytes are spoilt, and go on."""

import shutil
from pathlib import Path

import pytest

from lokr_serve.client import (
    AlreadyExistsError,
    AsyncClient,
    DataLossError,
    InvalidArgumentError,
)
from lokr_serve.types import LoadSpec
from tests.serve.rpc.uploading import (
    TENSORS,
    Sent,
    break_off,
    is_busy,
    kept,
    offsets,
    send,
    until,
)
from tests.serve.running import Connection, connected, running_server, tiny_settings


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


def test_a_client_that_ignores_the_offset_is_told_and_works_the_next_time(
    server: Connection, uploads: Path, poet: Sent
) -> None:
    """What is sent twice cannot be put together; the part goes, so that the next call can."""
    break_off(server.adapters, poet, uploads, 3000)
    until(lambda: not is_busy(server.adapters, poet))

    with pytest.raises(InvalidArgumentError, match="held 3000 of them already"):
        send(server.adapters, poet.header(), *poet.chunks())
    assert not kept(uploads)

    assert send(server.adapters, poet.header(), *poet.chunks()) == 0


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

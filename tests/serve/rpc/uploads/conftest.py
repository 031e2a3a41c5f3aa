"""A server that takes uploads."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.rpc.uploading import Sent, kept, until
from tests.serve.running import Connection, connected, running_server, tiny_settings

MAX_FILE_BYTES = 1 << 20


@pytest.fixture(scope="package")
def poet(adapter_folder: Path) -> Sent:
    """The adapter ``poet``."""
    return Sent.of(adapter_folder / "poet")


@pytest.fixture(scope="package")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that uploads are kept in."""
    return tmp_path_factory.mktemp("kept") / "uploads"


@pytest.fixture(scope="package")
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

"""Servers that want credentials."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lokr_serve.app import Addresses
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.pki import Pki, write_clients

CLIENTS = {
    "everything": 'permissions = ["infer", "admin"]',
    "reader": 'permissions = ["infer"]',
    "keeper": 'permissions = ["admin"]',
    "poet-only": 'permissions = ["infer", "admin"]\nadapters = ["poet", "poets/*"]',
}


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    """An authority of this test's own."""
    return Pki(folder=tmp_path)


@pytest.fixture(scope="session")
def clients_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of clients with every kind of permission."""
    return write_clients(tmp_path_factory.mktemp("clients") / "clients.toml", **CLIENTS)


@pytest.fixture(scope="session")
def guarded(model_folder: Path, adapter_folder: Path, clients_file: Path) -> Iterator[Addresses]:
    """A server that knows callers by their tokens, and has reflection although it does."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        security={"clients": clients_file},
        server={"reflection": True},
    )
    with running_server(settings) as server:
        yield server.ready.result()

"""``adapters upload``, and what a kill of the server in the middle of one leaves."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lokr_serve.v1.adapters_pb2_grpc import AdapterServiceStub
from tests.serve.cli.conftest import Run
from tests.serve.cli.test_serve import read_ready, serving
from tests.serve.rpc.uploading import Sent, sending, until
from tests.serve.running import Connection, connected, running_server, tiny_settings


@pytest.fixture(scope="module")
def upload_server(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Connection]:
    """A server that takes uploads."""
    uploads = tmp_path_factory.mktemp("uploads")
    settings = tiny_settings(model_folder, None, adapters={"uploads": uploads})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


def test_upload_prints_the_adapter_as_load_does(
    run: Run, upload_server: Connection, adapter_folder: Path, tmp_path: Path
) -> None:
    """One command takes an adapter from the trainer's machine to the server."""
    server = ("--server", upload_server.addresses.admin_listen)
    poet, pirate = (str(adapter_folder / name) for name in ("poet", "pirate"))

    first = run("adapters", "upload", "team/a", poet, "--pinned", "--json", *server)
    refused = run("adapters", "upload", "team/a", pirate, *server)
    replaced = run("adapters", "upload", "team/a", pirate, "--replace", *server)
    missing = run("adapters", "upload", "b", str(tmp_path / "missing"), *server)

    told = json.loads(first.out)
    assert (first.code, first.err) == (0, "")
    assert (told["adapter_id"], told["pinned"], told["state"]) == ("team/a", True, "ready")
    assert told["source"].startswith("upload:")
    assert (refused.code, missing.code) == (1, 1)
    assert "set replace" in refused.err
    assert "missing" in missing.err
    assert replaced.out.startswith("adapter_id")


def test_a_killed_server_goes_on_where_it_was(
    model_folder: Path,
    adapter_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is on the disk is there after a kill -9, and is hashed anew."""
    uploads, poet = tmp_path / "uploads", Sent.of(adapter_folder / "poet")
    part = uploads / f"{poet.digest}.part"
    monkeypatch.setenv("LOKR_SERVE__ADAPTERS__UPLOADS", str(uploads))
    with serving(model_folder, "--threads", "1") as process:
        address = read_ready(process)["admin_listen"]
        with (
            grpc.insecure_channel(address) as channel,
            sending(AdapterServiceStub(channel), poet.header(), *poet.chunks(end=3000)),
        ):
            until(lambda: part.exists() and part.stat().st_size == 3000)
            process.kill()
            process.wait(30)
    told: list[tuple[int, int]] = []
    settings = tiny_settings(model_folder, None, adapters={"uploads": uploads})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        sent = connection.admin.upload_adapter(
            "sent", adapter_folder / "poet", progress=lambda *counts: told.append(counts)
        )

    assert told[0] == (3000, len(poet.content))
    assert sent.digest == poet.digest
    assert [path.name for path in uploads.glob("[!.]*")] == [sent.source.removeprefix("upload:")]

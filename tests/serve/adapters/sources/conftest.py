"""Remote sources over a store in memory, and over a real server that speaks S3."""

import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
import pytest_asyncio

from lokr_serve.adapters.sources.remote import RemoteSource
from lokr_serve.adapters.workers import Workers
from lokr_serve.config import AdapterSettings
from lokr_serve.metrics import Metrics

MakeRemote = Callable[..., RemoteSource]
START_SECONDS = 60
SECRET = "not-for-anybody"


@pytest_asyncio.fixture
async def make_remote(tmp_path: Path) -> AsyncIterator[MakeRemote]:
    """Builds remote sources over one folder of copies, each in place of the one before.

    Takes fields of AdapterSettings.
    """
    workers, made = Workers(2), list[RemoteSource]()

    def make(**fields: object) -> RemoteSource:
        for before in made:
            before.close()
        folder = tmp_path / "fetched"
        settings = AdapterSettings.model_validate(
            {"remote": ("memory://bucket/ok",), "fetched": folder, **fields}
        )
        remote = RemoteSource(
            folder, settings=settings, workers=workers, metrics=Metrics(version="test")
        )
        remote.open()
        made.append(remote)
        return remote

    yield make
    for remote in made:
        remote.close()
    await workers.close()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A store in memory, empty before and after."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets drivers that are made from then on find an S3 server, as the environment does."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")

    def use(address: str) -> None:
        for name, value in (
            ("AWS_ENDPOINT_URL_S3", address),
            ("AWS_ACCESS_KEY_ID", "the-key"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own that speaks S3."""
    if find_spec("moto") is None:  # its import takes seconds, and is for the other process
        pytest.skip("moto[server] is not installed")
    log = tmp_path_factory.mktemp("moto") / "log"
    program = "from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output)
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return where the server says that it listens."""
    waited = threading.Event()
    for _ in range(START_SECONDS * 20):
        for line in log.read_text().splitlines():
            if "Running on http://127.0.0.1:" in line:
                return line.partition("Running on ")[2].strip()
        assert process.poll() is None, log.read_text()
        waited.wait(0.05)
    raise AssertionError(log.read_text())

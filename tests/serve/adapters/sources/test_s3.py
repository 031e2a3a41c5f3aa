"""An object store that speaks S3, through its real driver and over a real socket."""

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from lokr_serve.errors import SourceError
from lokr_serve.types import LoadSpec
from tests.serve.adapters.sources.conftest import MakeRemote
from tests.serve.adapters.sources.reading import copies, read
from tests.serve.running import connected, running_server, tiny_settings


@pytest.fixture
def bucket(s3_address: str, use_s3: Callable[[str], None]) -> str:
    """A bucket of this test's own, and the environment that leads to it."""
    use_s3(s3_address)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    store(name).mkdir(name)
    return name


def store(name: str) -> fsspec.AbstractFileSystem:
    """Return a driver of our own, to write with."""
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)


async def test_files_and_folders_come_from_s3_once(
    make_remote: MakeRemote, bucket: str, tmp_path: Path
) -> None:
    """Sizes and states are those that the store tells; a copy serves until they change."""
    content = bytes(range(256)) * 40_000  # more than one piece
    files = store(bucket)
    files.pipe(f"{bucket}/ok/peft/adapter_model.safetensors", content)
    files.pipe(f"{bucket}/ok/peft/adapter_config.json", b"{}")
    files.pipe(f"{bucket}/ok/peft/optimizer.pt", b"no")
    files.pipe(f"{bucket}/ok/x.safetensors", b"single")
    remote = make_remote(remote=(f"s3://{bucket}/ok/",))

    assert await read(remote, f"s3://{bucket}/ok/peft") == content
    assert await read(remote, f"s3://{bucket}/ok/x.safetensors") == b"single"
    kept = copies(tmp_path)
    assert await read(remote, f"s3://{bucket}/ok/peft") == content
    assert copies(tmp_path) == kept

    files.pipe(f"{bucket}/ok/x.safetensors", b"SINGLE")
    assert await read(remote, f"s3://{bucket}/ok/x.safetensors") == b"SINGLE"
    digest = hashlib.sha256(b"single").hexdigest()
    assert await read(remote, f"s3://{bucket}/ok/x.safetensors", digest) == b"single"


async def test_what_is_not_in_the_bucket_is_told_by_name(
    make_remote: MakeRemote, bucket: str
) -> None:
    """And so is a bucket that does not exist."""
    remote = make_remote(remote=(f"s3://{bucket}/ok", "s3://nowhere-at-all"))

    for source in (
        f"s3://{bucket}/ok/a",
        f"s3://{bucket}/ok/a.safetensors",
        "s3://nowhere-at-all/a",
    ):
        with pytest.raises(SourceError, match="does not exist") as caught:
            await read(remote, source)
        assert caught.value.source == source


def test_a_server_loads_from_s3(
    model_folder: Path, adapter_folder: Path, tmp_path: Path, bucket: str
) -> None:
    """The adapter is the one of the folder, and unloading it leaves the store as it was."""
    files = store(bucket)
    files.put(str(adapter_folder / "poet"), f"{bucket}/team/poet", recursive=True)
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        adapters={"remote": (f"s3://{bucket}/team",), "fetched": tmp_path / "fetched"},
    )
    source = f"s3://{bucket}/team/poet"
    with running_server(settings) as running, connected(running.ready.result()) as server:
        fetched = server.admin.load_adapter(LoadSpec(adapter_id="far", source=source))
        near = server.admin.load_adapter(LoadSpec(adapter_id="near", source="poet"))
        server.admin.unload_adapter("far")

    assert (fetched.version, fetched.source) == (near.version, source)
    assert files.exists(f"{bucket}/team/poet/adapter_model.safetensors")

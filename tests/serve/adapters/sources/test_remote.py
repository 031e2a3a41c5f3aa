"""Remote stores: what is fetched, what is kept, and what becomes of stores that serve badly."""

import hashlib
import logging
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lokr_core import AdapterFileError
from lokr_serve.adapters.sources import driver
from lokr_serve.adapters.sources.remote import RemoteSource
from lokr_serve.errors import (
    DigestMismatchError,
    SettingsError,
    ShuttingDownError,
    SourceError,
    SourceUnavailableError,
    StorageFullError,
)
from tests.serve.adapters.sources.conftest import MakeRemote
from tests.serve.adapters.sources.reading import copies, read

ROOT = "memory://bucket/ok"
MEMORY = "/bucket/ok"


async def names(remote: RemoteSource, source: str) -> list[str]:
    """Return the names of the files that were fetched for a source."""
    async with remote.held(source, None) as located:
        return sorted(path.name for path in located.path.parent.iterdir())


async def test_a_file_and_a_folder_are_fetched_and_nothing_beside(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem
) -> None:
    """An adapter is its tensors and its configuration; a prefix may hold a whole training run."""
    for name in ("adapter_model.safetensors", "adapter_config.json", "optimizer.pt"):
        memory.pipe(f"{MEMORY}/peft/{name}", name.encode())
    memory.pipe(f"{MEMORY}/peft/checkpoint/adapter_model.safetensors", b"other")
    memory.pipe(f"{MEMORY}/single/x.safetensors", b"single")
    memory.pipe(f"{MEMORY}/single/README.md", b"readme")
    remote = make_remote()

    peft = ["adapter_config.json", "adapter_model.safetensors"]
    assert await names(remote, f"{ROOT}/peft") == peft
    assert await names(remote, f"{ROOT}/peft/") == peft
    assert await names(remote, f"{ROOT}/peft/adapter_model.safetensors") == peft
    assert await names(remote, f"{ROOT}/single") == ["x.safetensors"]
    assert await names(remote, f"{ROOT}/single/x.safetensors") == ["x.safetensors"]
    assert await read(remote, f"{ROOT}/single/x.safetensors") == b"single"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (f"{ROOT}/missing", "does not exist"),
        (f"{ROOT}/missing.safetensors", "does not exist"),
        (f"{ROOT}/folder.safetensors", "does not exist"),
        (f"{ROOT}/empty", "holds no .safetensors files"),
        (f"{ROOT}/two", "holds several .safetensors files"),
        (f"{ROOT}/empty/adapter.bin", "holds no .safetensors files"),
    ],
)
async def test_what_is_no_adapter_is_refused(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, source: str, problem: str
) -> None:
    """And is not held against a source the next time: it may be there by then."""
    memory.pipe(f"{MEMORY}/empty/adapter.bin", b"pickle")
    memory.pipe(f"{MEMORY}/folder.safetensors/x", b"x")
    for name in "ab":
        memory.pipe(f"{MEMORY}/two/{name}.safetensors", b"x")
    remote = make_remote()

    for _ in range(2):
        with pytest.raises(SourceError, match=problem):
            await read(remote, source)


async def test_a_copy_is_used_until_the_store_has_something_else(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """Each load asks the store, which costs little; the bytes come once."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote = make_remote()

    assert await read(remote, f"{ROOT}/a.safetensors") == b"one"
    first = copies(tmp_path)
    assert await read(remote, f"{ROOT}/a.safetensors") == b"one"
    assert copies(tmp_path) == first
    memory.pipe(f"{MEMORY}/a.safetensors", b"two")
    assert await read(remote, f"{ROOT}/a.safetensors") == b"two"


async def test_a_pinned_digest_needs_no_store(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem
) -> None:
    """An adapter that is pinned can be loaded while its store is gone, also after a restart."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    await read(make_remote(), f"{ROOT}/a.safetensors", digest)
    memory.store.clear()

    assert await read(make_remote(), f"{ROOT}/a.safetensors", digest) == b"one"
    with pytest.raises(SourceError, match="does not exist"):
        await read(make_remote(), f"{ROOT}/a.safetensors")
    with pytest.raises(SourceError, match="does not exist"):
        await read(make_remote(), f"{ROOT}/b.safetensors", digest)  # of another source


async def test_a_store_that_tells_no_state_is_read_each_time(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the same size might be of other content."""
    monkeypatch.setattr(driver, "_FACTS", ())
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote = make_remote()
    await read(remote, f"{ROOT}/a.safetensors")
    memory.pipe(f"{MEMORY}/a.safetensors", b"two")

    assert await read(remote, f"{ROOT}/a.safetensors") == b"two"


async def test_what_is_too_large_is_refused_before_it_is_read(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """The store tells the size, and the reading is held to it."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"x" * 101)
    memory.pipe(f"{MEMORY}/peft/adapter_model.safetensors", b"x")
    memory.pipe(f"{MEMORY}/peft/adapter_config.json", b"x" * (4 << 20) + b"x")

    with pytest.raises(SourceError, match=r"101 bytes, more than .* adapters.max_file_bytes, 100"):
        await read(make_remote(max_file_bytes=100), f"{ROOT}/a.safetensors")
    with pytest.raises(SourceError, match=r"adapter_config.json of more than"):
        await read(make_remote(), f"{ROOT}/peft")
    with pytest.raises(StorageFullError, match=r"adapters.fetched_bytes"):
        await read(make_remote(fetched_bytes=100), f"{ROOT}/a.safetensors")
    assert not copies(tmp_path)


async def test_a_store_that_tells_no_size_is_not_read(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no size has no end."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    told = {"name": f"{MEMORY}/a.safetensors", "size": None, "type": "file"}
    monkeypatch.setattr(type(memory), "info", lambda store, path: told)

    with pytest.raises(SourceError, match="does not tell its size"):
        await read(make_remote(), f"{ROOT}/a.safetensors")


async def test_copies_make_way_for_others_but_never_while_they_are_read(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem
) -> None:
    """The folder of copies has a budget, and the least recently used go first."""
    for name in "abcd":
        memory.pipe(f"{MEMORY}/{name}.safetensors", name.encode() * 3000)
    remote = make_remote(fetched_bytes=9_000)
    digests = {name: hashlib.sha256(name.encode() * 3000).hexdigest() for name in "abcd"}
    async with remote.held(f"{ROOT}/a.safetensors", None) as held:
        for name in "bcbdbc":
            await read(remote, f"{ROOT}/{name}.safetensors", digests[name])
        assert held.path.exists()
    memory.store.clear()

    assert await read(remote, f"{ROOT}/a.safetensors", digests["a"])
    assert await read(remote, f"{ROOT}/b.safetensors", digests["b"])
    with pytest.raises(SourceError):
        await read(remote, f"{ROOT}/d.safetensors", digests["d"])


async def test_a_spoilt_copy_is_fetched_again(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem
) -> None:
    """What the disk has changed must neither be served nor stay in the way."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote, source = make_remote(), f"{ROOT}/a.safetensors"
    async with remote.held(source, None) as located:
        located.path.write_bytes(b"bad")
    with pytest.raises(AdapterFileError):
        async with remote.held(source, None):
            raise AdapterFileError("as a reader would")

    assert await read(remote, source) == b"one"


async def test_a_sound_copy_stays_though_it_is_refused(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """It is what the store has; another read would bring the same."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote = make_remote()

    with pytest.raises(AdapterFileError):
        async with remote.held(f"{ROOT}/a.safetensors", None):
            raise AdapterFileError("as a reader would")

    assert len(copies(tmp_path)) == 1


async def test_a_copy_that_is_not_what_was_asked_for_is_fetched_again(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a broken network has changed once must not be met again until the store changes."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote, source = make_remote(), f"{ROOT}/a.safetensors"
    digest = hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as broken:
        broken.setattr(driver.Driver, "read", lambda *_: iter([b"0ne"]))
        with pytest.raises(DigestMismatchError):
            await read(remote, source, digest)

    assert await read(remote, source, digest) == b"one"


async def test_a_start_clears_up_what_a_crash_left(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    """A kill in the middle of a fetch must not fill the disk for ever; strangers' files stay."""
    for name in ("new-0123456789abcdef", "trash-0123456789abcdef"):
        (tmp_path / "fetched" / name).mkdir(parents=True)
        (tmp_path / "fetched" / name / "x.safetensors").write_bytes(b"half")
    (tmp_path / "fetched" / "notes.txt").write_text("mine")

    make_remote()

    assert copies(tmp_path) == ["notes.txt"]


async def test_a_source_that_failed_is_left_alone_however_it_is_spelt(
    make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two spellings are one source, which must not be asked twice as often."""
    num_asked = 0

    def fail(store: object, path: str) -> None:
        nonlocal num_asked
        num_asked += 1
        raise ConnectionError

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    remote = make_remote(retry_seconds=600.0, max_retry_seconds=600.0)
    for spelt in (f"{ROOT}/a.safetensors", f"{ROOT}/a.safetensors/"):
        with pytest.raises(SourceUnavailableError):
            await read(remote, spelt)

    assert num_asked == 1


async def test_closing_ends_what_is_being_fetched(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem
) -> None:
    """A shutdown does not wait for a store."""
    memory.pipe(f"{MEMORY}/a.safetensors", b"one")
    remote = make_remote()
    remote.close()

    with pytest.raises(ShuttingDownError):
        await read(remote, f"{ROOT}/a.safetensors")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError("secret"), (SourceError, "may not be read")),
        (RuntimeError("secret"), (SourceUnavailableError, "the server's log has the cause")),
        (TimeoutError("secret"), (SourceUnavailableError, "did not come in time")),
    ],
)
async def test_what_drivers_say_is_for_the_log_alone(
    make_remote: MakeRemote,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    told: tuple[type[Exception], str],
) -> None:
    """It may hold addresses and names that are not for clients."""

    def fail(store: object, path: str) -> None:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with caplog.at_level(logging.WARNING), pytest.raises(told[0], match=told[1]) as caught:
        await read(make_remote(), f"{ROOT}/a.safetensors")

    assert "secret" not in str(caught.value)
    assert isinstance(error, TimeoutError) or "secret" in caplog.text


@pytest.mark.parametrize(
    ("scheme", "package"), [("s3", r"lokr-serve\[s3\]"), ("zz", "a driver of fsspec for zz://")]
)
async def test_a_missing_driver_is_named_with_its_package(
    make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch, scheme: str, package: str
) -> None:
    """Drivers of stores are optional."""

    def missing(protocol: str) -> None:
        raise ImportError(f"Install {protocol}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(SourceError, match=package):
        await read(make_remote(remote=(f"{scheme}://bucket",)), f"{scheme}://bucket/a")


async def test_a_folder_for_copies_that_cannot_be_made_stops_the_start(
    make_remote: MakeRemote, tmp_path: Path
) -> None:
    """A misspelt folder is found at start, not at the first load."""
    (tmp_path / "fetched").write_text("a file")

    with pytest.raises(SettingsError, match=r"adapters.fetched"):
        make_remote()

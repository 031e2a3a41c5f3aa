"""Stores that are slow, broken, or not there: who asks gets an answer, and nothing else waits."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from lokr_serve.adapters.sources.remote import RemoteSource
from lokr_serve.errors import SourceError, SourceUnavailableError
from tests.serve.adapters.callers import until
from tests.serve.adapters.sources.bad_store import CONTENT, BadStore, Fault
from tests.serve.adapters.sources.conftest import SECRET, MakeRemote
from tests.serve.adapters.sources.reading import copies, read

ROOT = "s3://bucket/ok"
SOURCE = f"{ROOT}/a.safetensors"

PROBLEMS = {
    Fault.SILENT: "did not come within",
    Fault.STALLED: "did not come",
    Fault.TRICKLING: "did not come",
    Fault.CUT: "cannot be reached|broke off",
    Fault.ENDLESS: "broke off: more than the 5000 bytes",
    Fault.SHORT: "broke off: 2000 of the 5000 bytes came",
    Fault.FAILING: "did not come|cannot be reached",
}


@pytest.fixture
def bad_store(use_s3: Callable[[str], None]) -> Iterator[BadStore]:
    """A store that serves badly, for the driver of S3."""
    with BadStore().running() as store:
        use_s3(store.address)
        yield store


def source_of(fault: Fault) -> str:
    """Return the source of a file that is served so."""
    return f"{ROOT}/{fault.value}.safetensors"


async def failure(remote: RemoteSource, source: str) -> SourceUnavailableError:
    """Return what reading a source ends with."""
    with pytest.raises(SourceUnavailableError) as caught:
        await read(remote, source)
    return caught.value


async def test_a_store_that_serves_badly_ends_in_time_and_is_left_alone_for_a_while(
    make_remote: MakeRemote, bad_store: BadStore, tmp_path: Path
) -> None:
    """Whoever asks gets an answer, and asking again does not make it worse; then it recovers."""
    remote = make_remote(
        remote=(ROOT,), fetch_seconds=2.0, retry_seconds=0.4, max_fetches=len(PROBLEMS)
    )
    await warm_up(remote)
    kept = copies(tmp_path)

    async with asyncio.timeout(60):  # some of these stores would never end by themselves
        first = await asyncio.gather(*(failure(remote, source_of(fault)) for fault in PROBLEMS))
    for error, (fault, problem) in zip(first, PROBLEMS.items(), strict=True):
        assert re.search(problem, str(error)), error
        assert error.source == source_of(fault)
        assert error.retry_seconds == 0.4

    num_gets = bad_store.gets.total()
    silent = await failure(remote, source_of(Fault.SILENT))
    assert silent.retry_seconds < 0.4
    assert bad_store.gets.total() == num_gets
    await until(lambda: copies(tmp_path) == kept)

    bad_store.is_healed = True
    await asyncio.sleep(0.41)
    assert await read(remote, source_of(Fault.STALLED)) == CONTENT


async def warm_up(remote: RemoteSource) -> None:
    """Read something, however long the driver takes to load."""
    while True:
        try:
            await read(remote, SOURCE)
        except SourceUnavailableError as error:
            await asyncio.sleep(error.retry_seconds)
        else:
            return


async def test_what_is_missing_or_forbidden_is_the_caller_s_mistake(
    make_remote: MakeRemote, bad_store: BadStore
) -> None:
    """It does not pass by itself, and is not held against the source either."""
    remote = make_remote(remote=(ROOT,))

    with pytest.raises(SourceError, match="does not exist"):
        await read(remote, source_of(Fault.MISSING))
    with pytest.raises(SourceError, match="may not be read"):
        await read(remote, source_of(Fault.FORBIDDEN))


async def test_nobody_at_home_passes(
    make_remote: MakeRemote, use_s3: Callable[[str], None]
) -> None:
    """A store that is being restarted is not the caller's mistake."""
    use_s3("http://127.0.0.1:9")  # discard; nobody listens there
    remote = make_remote(remote=(ROOT,), fetch_seconds=1.5)

    with pytest.raises(SourceUnavailableError, match=r"did not come|cannot be reached"):
        await read(remote, SOURCE)


async def test_slow_stores_hold_up_neither_the_loop_nor_more_than_their_slots(
    make_remote: MakeRemote, memory: fsspec.AbstractFileSystem, bad_store: BadStore
) -> None:
    """With every slot taken by a slow store, what is here already is found at once."""
    memory.pipe("/bucket/ok/a.safetensors", b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    remote = make_remote(remote=("memory://bucket/ok", ROOT), max_fetches=1, fetch_seconds=4.0)
    await read(remote, "memory://bucket/ok/a.safetensors")
    slow = [asyncio.create_task(read(remote, f"{ROOT}/silent-{name}.safetensors")) for name in "xy"]
    await asyncio.sleep(0.1)

    assert await read(remote, "memory://bucket/ok/a.safetensors", digest) == b"one"

    assert not any(task.done() for task in slow)
    outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SourceUnavailableError] * 2


async def test_one_fetch_serves_all_who_wait_for_it(
    make_remote: MakeRemote, bad_store: BadStore
) -> None:
    """A hundred ids of one source are one download."""
    remote = make_remote(remote=(ROOT,))

    contents = await asyncio.gather(*(read(remote, SOURCE) for _ in range(8)))

    assert set(contents) == {CONTENT}
    assert bad_store.gets.total() == 1


async def test_no_secret_is_told_or_logged(
    make_remote: MakeRemote, bad_store: BadStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver has its credentials from the environment; nobody else needs them."""
    remote = make_remote(remote=(ROOT,))
    with caplog.at_level("DEBUG", "lokr_serve"), pytest.raises(SourceError) as caught:
        await read(remote, source_of(Fault.FORBIDDEN))

    assert SECRET not in caplog.text + str(caught.value)
    assert "the-key" not in caplog.text + str(caught.value)

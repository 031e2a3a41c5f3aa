"""Credentials while they are kept up to date."""

import asyncio
from pathlib import Path

import pytest

from lokr_serve.access.credentials import keep_fresh, read_credentials
from lokr_serve.access.reloading import Look, Reloaded
from lokr_serve.config import SecuritySettings
from lokr_serve.metrics import Metrics
from tests.serve.security.pki import token_of, write_clients


async def until(metrics: Metrics, outcome: str, count: int) -> None:
    """Wait until looks at the clients had an outcome so many times."""
    labels = {"subject": "clients", "outcome": outcome}
    name = "lokr_serve_credential_reloads_total"
    async with asyncio.timeout(10):
        while (metrics.registry.get_sample_value(name, labels) or 0) < count:  # noqa: ASYNC110 - by a thread
            await asyncio.sleep(0.005)


async def test_changes_and_failures_are_counted(tmp_path: Path) -> None:
    """An alert can say that what somebody has changed is not in force."""
    file, metrics = write_clients(tmp_path / "c", a='permissions = ["infer"]'), Metrics(version="t")
    credentials = read_credentials(SecuritySettings(clients=file))
    watch = asyncio.create_task(keep_fresh(credentials, 0.005, metrics))
    file.write_text("nothing")
    await until(metrics, "failed", 2)
    write_clients(file, b='permissions = ["infer"]')
    await until(metrics, "renewed", 1)
    watch.cancel()

    assert credentials.clients is not None
    assert credentials.clients.value.by_token(token_of("b")).name == "b"


async def test_a_bug_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Later changes must still be seen."""
    file, metrics = write_clients(tmp_path / "c", a='permissions = ["infer"]'), Metrics(version="t")
    credentials = read_credentials(SecuritySettings(clients=file))

    def fail(reloaded: Reloaded[object]) -> Look:
        raise MemoryError

    monkeypatch.setattr(Reloaded, "look", fail)
    watch = asyncio.create_task(keep_fresh(credentials, 0.005, metrics))
    await until(metrics, "failed", 2)
    watch.cancel()

    assert "looking at the clients failed" in caplog.text


async def test_nothing_is_watched_where_no_file_is_set() -> None:
    """An open server has no files of credentials."""
    credentials = read_credentials(SecuritySettings())

    await asyncio.wait_for(keep_fresh(credentials, 0.005, Metrics(version="t")), 10)
    assert not credentials.are_wanted

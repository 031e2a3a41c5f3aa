"""The audit log: each change, each refusal, and strangers by number."""

import asyncio
import logging
import queue
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lokr_serve.app import Addresses
from lokr_serve.client import Client, ClientError, Credentials, DeadlineExceededError
from lokr_serve.rpc.interceptors.audit import OTHER_HOSTS, FailureLog, audit_logger
from lokr_serve.rpc.interceptors.interceptor import Call
from lokr_serve.types import (
    AdapterWeight,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
)
from tests.serve.running import running_server, tiny_settings
from tests.serve.security.calling import channel_to, code_of
from tests.serve.security.methods import GUARDED
from tests.serve.security.pki import token_of

Fields = dict[str, object]
LONG = GenerationRequest(
    prompt=TextPrompt(text="x"),
    adapters=(AdapterWeight(adapter_id="poet"),),
    sampling=SamplingParams(max_tokens=8000, ignore_eos=True),
)


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log from its audit lines on."""
    caplog.set_level(logging.INFO, audit_logger.name)
    return caplog


def lines(audit: pytest.LogCaptureFixture) -> list[Fields]:
    """Return the fields of each line of the audit log."""
    return [r.__dict__["fields"] for r in audit.records if r.name == audit_logger.name]


class _ToQueue(logging.Handler):
    """Hands the fields of each line to whoever waits for them."""

    def __init__(self, lines: "queue.Queue[Fields]") -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(record.__dict__["fields"])


@pytest.fixture
def told(audit: pytest.LogCaptureFixture) -> Iterator["queue.Queue[Fields]"]:
    """The lines as they come, for tests that wait for them."""
    lines: queue.Queue[Fields] = queue.Queue()
    handler = _ToQueue(lines)
    audit_logger.addHandler(handler)
    yield lines
    audit_logger.removeHandler(handler)


def counts(told: Sequence[Fields]) -> dict[object, object]:
    """Return the counts of some lines, by host."""
    return {fields["peer"]: fields["count"] for fields in told}


@pytest.fixture
def addresses(
    model_folder: Path, adapter_folder: Path, clients_file: Path, tmp_path: Path
) -> Iterator[Addresses]:
    """A server whose adapters may be changed."""
    store = Path(shutil.copytree(adapter_folder, tmp_path / "store"))
    settings = tiny_settings(model_folder, store, security={"clients": clients_file})
    with running_server(settings) as server:
        yield server.ready.result()


def test_each_change_and_each_refusal_is_one_line(
    addresses: Addresses, audit: pytest.LogCaptureFixture
) -> None:
    """Who, from where, what, which adapter, and how it ended."""

    def client(address: str, name: str) -> Client:
        return Client(address, credentials=Credentials(token=token_of(name)))

    with (
        client(addresses.admin_listen, "keeper") as keeper,
        client(addresses.listen, "everything") as elsewhere,
        client(addresses.admin_listen, "reader") as reader,
        client(addresses.admin_listen, "poet-only") as poet_only,
    ):
        keeper.load_adapter(LoadSpec(adapter_id="new", source="poet"))
        keeper.update_adapter("new", pinned=True)
        keeper.unload_adapter("new")
        refusals: Sequence[Callable[[], object]] = (
            lambda: keeper.unload_adapter("new"),
            lambda: elsewhere.unload_adapter("poet"),
            lambda: reader.unload_adapter("poet"),
            lambda: poet_only.unload_adapter("pirate\nforged"),
        )
        for refused in refusals:
            with pytest.raises(ClientError):
                refused()
        keeper.get_adapter("poet")
        list(keeper.list_adapters())

    found = [(f["caller"], f["method"], f["adapter_id"], f["code"]) for f in lines(audit)]
    service = "lokr_serve.v1.AdapterService"
    assert found == [
        ("keeper", f"{service}/LoadAdapter", "new", "OK"),
        ("keeper", f"{service}/UpdateAdapter", "new", "OK"),
        ("keeper", f"{service}/UnloadAdapter", "new", "OK"),
        ("keeper", f"{service}/UnloadAdapter", "new", "NOT_FOUND"),
        ("everything", f"{service}/UnloadAdapter", "", "PERMISSION_DENIED"),
        ("reader", f"{service}/UnloadAdapter", "", "PERMISSION_DENIED"),
        ("poet-only", f"{service}/UnloadAdapter", "'pirate\\nforged'", "PERMISSION_DENIED"),
    ]
    assert [f["reason"] for f in lines(audit)][3:5] == ["ADAPTER_NOT_FOUND", "NOT_PERMITTED"]
    assert all(str(f["peer"]).startswith("ipv4:127.0.0.1:") for f in lines(audit))
    assert "token-of" not in audit.text


def test_a_change_that_is_given_up_is_told_too(
    addresses: Addresses, told: "queue.Queue[Fields]"
) -> None:
    """Nothing was changed, but somebody wanted to."""
    with (
        Client(addresses.listen, credentials=Credentials(token=token_of("reader"))) as reader,
        Client(addresses.admin_listen, credentials=Credentials(token=token_of("keeper"))) as keeper,
    ):
        stream = reader.generate(LONG)
        next(stream)
        with pytest.raises(DeadlineExceededError):
            keeper.unload_adapter("poet", drain_seconds=30, timeout_seconds=0.3)
        line = told.get(timeout=10)
        stream.close()

    assert (line["caller"], line["adapter_id"]) == ("keeper", "poet")
    assert line["code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


def test_a_flood_of_strangers_is_one_line(
    guarded: Addresses, audit: pytest.LogCaptureFixture
) -> None:
    """Whoever tries tokens must not push all else out of the log."""
    wrong = (("authorization", "Bearer a-guess-that-is-wrong"),)
    with channel_to(guarded.listen) as channel:
        for _ in range(30):
            code_of(channel, GUARDED[0], wrong)

    assert len(lines(audit)) <= 1  # none if the host had its line by an earlier test
    assert "a-guess" not in audit.text


class _Context:
    """As much of a call's context as the log looks at."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer


def call_from(peer: str, path: str = "/a/b") -> Call:
    """Return a call of a stranger."""
    return Call(
        path=path,
        service="a",
        method="b",
        kind="unary",
        request_id="1",
        context=_Context(peer),  # type: ignore[arg-type] # all that is used of it
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of a moment, and few hosts that are told apart."""
    monkeypatch.setattr("lokr_serve.rpc.interceptors.audit.FAILURE_SECONDS", 0.05)
    monkeypatch.setattr("lokr_serve.rpc.interceptors.audit.MAX_FAILING_HOSTS", 2)


@pytest.mark.usefixtures("quick")
async def test_the_number_of_further_failures_is_told_later(told: "queue.Queue[Fields]") -> None:
    """Each host by itself, whatever its ports; more hosts than are kept count together."""
    log = FailureLog()
    for peer in (
        "ipv4:10.0.0.1:1",
        "ipv4:10.0.0.1:2",
        "ipv4:10.0.0.1:3",
        "ipv6:%5Bfe80::1%5D:1",
        "unix:/run/socket",
        "ipv4:10.0.0.2:1",
    ):
        log.note(call_from(peer), "no good")
    first = [told.get_nowait() for _ in range(3)]
    later = [await asyncio.to_thread(told.get, timeout=10) for _ in range(2)]
    log.note(call_from("ipv4:10.0.0.1:9"), "no good")
    again = told.get_nowait()

    assert counts(first) == {"ipv4:10.0.0.1": 1, "ipv6:[fe80::1]": 1, OTHER_HOSTS: 1}
    assert counts(later) == {"ipv4:10.0.0.1": 2, OTHER_HOSTS: 1}
    assert counts([again]) == {"ipv4:10.0.0.1": 1}


async def test_what_a_stranger_makes_up_is_cut_and_cannot_forge_a_line(
    audit: pytest.LogCaptureFixture,
) -> None:
    """A path may be as long as the metadata, and hold anything."""
    FailureLog().note(call_from("unix:", path="/a\n" * 10_000), "no good")
    (line,) = lines(audit)

    assert len(str(line["method"])) < 400
    assert "\n" not in str(line["method"])

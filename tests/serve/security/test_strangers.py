"""With credentials switched on, a caller without them can do nothing but health checks."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from lokr_serve.app import Addresses
from lokr_serve.metrics import Metrics
from lokr_serve.rpc.gate import Gate
from lokr_serve.rpc.server import build_listeners
from tests.serve.running import tiny_settings
from tests.serve.security.calling import Metadata, bearer, channel_to, code_of, failure
from tests.serve.security.methods import GUARDED, UNKNOWN, all_methods

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
NOTHING: Metadata = ()
WRONG = (("authorization", "Bearer not-a-token-of-anybody"),)


@pytest.fixture(params=["listen", "admin_listen"])
def address(request: pytest.FixtureRequest, guarded: Addresses) -> str:
    """Each of the two listeners."""
    addresses = {"listen": guarded.listen, "admin_listen": guarded.admin_listen}
    return addresses[request.param]


@pytest.mark.parametrize("metadata", [NOTHING, WRONG], ids=["nothing", "wrong"])
def test_a_stranger_can_call_no_method_but_health(address: str, metadata: Metadata) -> None:
    """Every method of every service, reflection included, and none tells whether it exists."""
    with channel_to(address) as channel:
        codes = {path: code_of(channel, path, metadata) for path in (*GUARDED, *UNKNOWN)}

    assert len(codes) >= 14
    assert codes == dict.fromkeys(codes, UNAUTHENTICATED)


async def test_the_methods_of_these_tests_are_all_that_a_server_has(
    model_folder: Path, clients_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is added later must not be forgotten here."""
    registered: set[str] = set()

    def note(server: grpc.aio.Server, service: str, handlers: dict[str, object]) -> None:
        registered.update(f"/{service}/{name}" for name in handlers)

    monkeypatch.setattr("grpc.aio._server.Server.add_registered_method_handlers", note)
    settings = tiny_settings(
        model_folder, security={"clients": clients_file}, server={"reflection": True}
    )
    listeners = build_listeners(Gate(), settings, Metrics(version="test"), None)
    await listeners.stop(0)

    assert registered == {method.path for method in all_methods()}


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer"),),
        (("authorization", f"Basic {bearer('everything')[0][1].split()[1]}"),),
        (("authorization", bearer("everything")[0][1].split()[1]),),
        (*bearer("everything"), *bearer("everything")),
        (*WRONG, *bearer("everything")),
        (("x-authorization", bearer("everything")[0][1]),),
        (("authorization", f"{bearer('everything')[0][1]}x"),),
        (("authorization", bearer("everything")[0][1][:-1]),),
    ],
)
def test_what_only_looks_like_a_token_is_none(guarded: Addresses, metadata: Metadata) -> None:
    """Whatever a gateway or a stranger makes of the key."""
    with channel_to(guarded.listen) as channel:
        assert code_of(channel, GUARDED[0], metadata) is UNAUTHENTICATED


def test_the_way_to_spell_bearer_does_not_matter(guarded: Addresses) -> None:
    """The name of the scheme has no case."""
    ((key, value),) = bearer("everything")
    with channel_to(guarded.listen) as channel:
        code = code_of(channel, GUARDED[0], ((key, value.replace("Bearer", "bEARER")),), [b"\xff"])

    assert code is grpc.StatusCode.INVALID_ARGUMENT  # it was let in, and read


def test_a_known_caller_learns_that_a_method_does_not_exist(guarded: Addresses) -> None:
    """Only strangers are told nothing."""
    with channel_to(guarded.listen) as channel:
        codes = {code_of(channel, path, bearer("reader")) for path in UNKNOWN}

    assert codes == {grpc.StatusCode.UNIMPLEMENTED}


def test_nothing_of_a_strangers_messages_is_waited_for_or_parsed(address: str) -> None:
    """A message that never comes, one that is no message, and one of 64 MiB are all the same."""

    def never() -> Iterator[bytes]:
        answered.wait(20)
        yield b""

    answered = threading.Event()
    upload = "/lokr_serve.v1.AdapterService/UploadAdapter"
    with channel_to(address) as channel:
        codes = [code_of(channel, path, messages=never()) for path in (GUARDED[0], upload)]
        answered.set()
        codes += [code_of(channel, GUARDED[0], messages=[b"\xff" * 10])]
        codes += [code_of(channel, GUARDED[0], messages=[bytes(64 * 2**20)])]

    assert set(codes) == {UNAUTHENTICATED}


def test_a_stream_of_a_stranger_that_never_ends_is_ended(address: str) -> None:
    """An upload is cut off by the status, before its first chunk was taken."""
    num_sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield bytes(2**20)

    with channel_to(address) as channel:
        path = "/lokr_serve.v1.AdapterService/UploadAdapter"

        assert code_of(channel, path, messages=endless()) is UNAUTHENTICATED
    assert num_sent < 50  # what fits the connection's own buffers


def test_health_checks_need_nothing(address: str) -> None:
    """Probes have no credentials, and wrong ones do no harm."""
    with channel_to(address) as channel:
        stub = HealthStub(channel)
        checked = [stub.Check(HealthCheckRequest(), metadata=m) for m in (NOTHING, WRONG)]
        watch = stub.Watch(HealthCheckRequest(service="lokr_serve.v1.TextService"))
        watched = next(watch)
        watch.cancel()

    assert {reply.status for reply in (*checked, watched)} == {HealthCheckResponse.SERVING}


def test_a_refusal_says_what_is_missing_and_nothing_else(guarded: Addresses) -> None:
    """The remedy, but nothing of who is known, nor of what is there."""
    with channel_to(guarded.listen) as channel:
        missing, wrong = (failure(channel, GUARDED[0], m) for m in (NOTHING, WRONG))

    for error, words in ((missing, "brings no credentials"), (wrong, "not one that this server")):
        assert words in str(error)
        assert (error.reason, error.metadata) == ("UNAUTHENTICATED", {})
        assert "not-a-token" not in str(error)

"""The time between a signal and the drain: not ready any more, and serving still."""

import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from lokr_serve.client import Health, UnavailableError
from lokr_serve.errors import EngineStoppedError
from lokr_serve.text.schedule import Schedule
from lokr_serve.types import AdapterWeight, Finished, GenerationRequest, SamplingParams, TextPrompt
from tests.serve.running import RunningServer, connected, running_server, tiny_settings

POET = GenerationRequest(
    prompt=TextPrompt(text="x"),
    adapters=(AdapterWeight(adapter_id="poet"),),
    sampling=SamplingParams(max_tokens=3),
)
BASE = GenerationRequest(
    prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=400, ignore_eos=True)
)


def readyz(address: str) -> int:
    """Return the status that load balancers without gRPC see."""
    try:
        with urlopen(f"http://{address}/readyz", timeout=10) as reply:
            return int(reply.status)
    except HTTPError as error:
        with error:
            return error.code


def test_calls_are_served_while_gateways_look_elsewhere(
    model_folder: Path, adapter_folder: Path
) -> None:
    """What reaches the server before all gateways know is not lost in a rollout."""
    settings = tiny_settings(model_folder, adapter_folder, server={"lame_duck_seconds": 2.0})
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        addresses = connection.addresses
        with grpc.insecure_channel(addresses.listen) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest())
            seen = [next(watch).status]
            server.stop()
            seen.append(next(watch).status)
            *_, last = connection.client.generate(POET)
            is_pinned = connection.admin.update_adapter("poet", pinned=True).pinned
            liveness = connection.client.health("liveness")
            ready_code = readyz(addresses.metrics_listen)

            assert seen == [HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING]
            assert isinstance(last, Finished)
            assert is_pinned
            assert (liveness, ready_code) == (Health.SERVING, 503)
            assert watch.code() is grpc.StatusCode.UNAVAILABLE  # not before the server closes


def test_a_call_of_the_last_moment_has_the_drain_before_it(model_folder: Path) -> None:
    """A stream that began while the server was leaving is as good as any other."""
    settings = tiny_settings(model_folder, server={"lame_duck_seconds": 0.5})
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        server.stop()
        *_, last = connection.client.generate(BASE)

    assert isinstance(last, Finished)


def test_a_server_that_never_served_leaves_at_once(model_folder: Path) -> None:
    """Nobody was sent to it, so nobody has to be sent elsewhere."""
    may_load = threading.Event()
    settings = tiny_settings(model_folder, server={"lame_duck_seconds": 600.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lokr_serve.app.load_base", lambda settings: may_load.wait(30))
        server = RunningServer(settings=settings)
        server.start()
        server.stop()
        server.ended.result(10)
    may_load.set()

    assert not server.ready.done()


def test_an_engine_that_dies_ends_the_lame_duck(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that come to a dead engine would wait for nothing."""
    settings = tiny_settings(model_folder, server={"lame_duck_seconds": 600.0})
    server = RunningServer(settings=settings)
    server.start()
    with connected(server.ready.result(30)) as connection:
        server.stop()

        def die(schedule: Schedule) -> None:
            raise SystemError("the device is gone")

        monkeypatch.setattr(Schedule, "step", die)
        with pytest.raises(UnavailableError):
            list(connection.client.generate(BASE))
        with pytest.raises(EngineStoppedError, match="SystemError"):
            server.ended.result(30)

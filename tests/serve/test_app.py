"""The whole server: its start, and its end when something fails."""

import socket
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
import torch
from transformers import PreTrainedModel

from lokr_serve.client import Client, Health, UnavailableError
from lokr_serve.config import ModelSettings
from lokr_serve.errors import EngineStoppedError, SettingsError
from lokr_serve.image.forwards import Forwards
from lokr_serve.text.load import load_model
from lokr_serve.text.schedule import Schedule
from lokr_serve.types import GenerationRequest, ImageRequest, TextPrompt
from tests.serve.running import RunningServer, connected, running_server, tiny_settings

ANY = GenerationRequest(prompt=TextPrompt(text="x"))


def free_address() -> str:
    """Return an address that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event that the load of the model waits for."""
    may_load = threading.Event()

    def load_later(settings: ModelSettings) -> PreTrainedModel:
        may_load.wait(30)
        return load_model(settings)

    monkeypatch.setattr("lokr_serve.backends.text.load_model", load_later)
    yield may_load
    may_load.set()


def test_calls_are_unavailable_while_the_model_loads(
    model_folder: Path, loading: threading.Event
) -> None:
    """Probes get an honest answer from the start, and clients a reason to wait."""
    address = free_address()
    server = RunningServer(settings=tiny_settings(model_folder, server={"listen": address}))
    server.start()
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        grpc.channel_ready_future(channel).result(30)

        assert client.health("liveness") is Health.SERVING
        assert client.health() is Health.NOT_SERVING
        with pytest.raises(UnavailableError, match="loaded"):
            client.generate_once(ANY)
        loading.set()
        server.ready.result(30)
        assert client.health() is Health.SERVING
    server.stop()
    server.ended.result(30)


def test_nobody_connects_before_the_model_is_there_where_that_is_set(
    model_folder: Path, loading: threading.Event
) -> None:
    """A gateway that only sees whether it can connect would send its calls to be refused."""
    address = free_address()
    early = {"listen": address, "early_listen": False}
    server = RunningServer(settings=tiny_settings(model_folder, server=early))
    server.start()
    host, _, port = address.rpartition(":")

    with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
        pass
    loading.set()
    assert server.ready.result(30).listen == address
    with Client(address) as client:
        assert client.health() is Health.SERVING
    server.stop()
    server.ended.result(30)


def test_a_server_can_be_stopped_while_the_model_loads(
    model_folder: Path, loading: threading.Event
) -> None:
    """A rollout that was a mistake must not wait for a large model."""
    server = RunningServer(settings=tiny_settings(model_folder))
    server.start()
    server.stop()

    server.ended.result(10)
    assert not server.ready.done()
    assert not loading.is_set()


def test_an_engine_that_cannot_begin_is_never_ready(model_folder: Path) -> None:
    """Whoever waits for the ready line would send requests to a server that is about to end."""
    settings = tiny_settings(model_folder, text={"cache_tokens": 10**13})  # far beyond any memory
    server = RunningServer(settings=settings)
    server.start()

    with pytest.raises(EngineStoppedError, match="could not begin"):
        server.ended.result(60)
    with pytest.raises(EngineStoppedError):
        server.ready.result(0)


def unavailable(server: RunningServer) -> UnavailableError:
    """Return how a request ends when the engine fails."""
    with connected(server.ready.result(30)) as connection:
        with pytest.raises(UnavailableError) as caught:
            list(connection.client.generate(ANY))
        return caught.value


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "words"),
    [(SystemError("the device is gone"), "SystemError"), (SystemExit(), "thread has ended")],
)
def test_an_engine_that_dies_ends_the_server(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    """Its requests get a status, and the process goes, so that another can take its place."""

    def die(schedule: Schedule) -> None:
        raise error

    monkeypatch.setattr(Schedule, "step", die)
    server = RunningServer(settings=tiny_settings(model_folder))
    server.start()

    assert unavailable(server).reason == "ENGINE_STOPPED"
    with pytest.raises(EngineStoppedError, match=words):
        server.ended.result(30)


def test_an_engine_that_is_stuck_ends_the_server(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that never ends cannot be cancelled; its requests must not wait for it for ever."""
    may_go_on = threading.Event()

    def hang(schedule: Schedule) -> None:
        may_go_on.wait(30)

    monkeypatch.setattr(Schedule, "step", hang)
    settings = tiny_settings(model_folder, text={"stuck_step_seconds": 0.2})
    server = RunningServer(settings=settings)
    server.start()

    assert unavailable(server)
    assert not may_go_on.is_set()
    may_go_on.set()
    with pytest.raises(EngineStoppedError, match="in one step"):
        server.ended.result(10)


def test_a_stuck_step_of_images_ends_the_server(
    pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch over engines knows no difference between them."""
    may_go_on = threading.Event()

    def hang(forwards: Forwards, batch: object) -> None:
        may_go_on.wait(30)

    monkeypatch.setattr(Forwards, "run", hang)
    settings = tiny_settings(pipeline_folder, image={"stuck_step_seconds": 0.2})
    server = RunningServer(settings=settings)
    server.start()

    with (
        connected(server.ready.result(60)) as connection,
        pytest.raises(UnavailableError) as caught,
    ):
        connection.client.generate_image_once(ImageRequest(prompt="x"))
    assert caught.value.reason == "ENGINE_STOPPED"
    assert not may_go_on.is_set()
    may_go_on.set()
    with pytest.raises(EngineStoppedError, match="in one step"):
        server.ended.result(30)


def test_a_server_with_a_stuck_engine_can_be_stopped(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal must end the process in bounded time, with a failure that its supervisor sees."""
    may_go_on, is_stuck = threading.Event(), threading.Event()

    def hang(schedule: Schedule) -> None:
        is_stuck.set()
        may_go_on.wait(60)

    monkeypatch.setattr(Schedule, "step", hang)
    monkeypatch.setattr("lokr_serve.app.END_SECONDS", 0.5)
    monkeypatch.setattr("lokr_serve.app.STEP_SECONDS", 0.2)
    server = RunningServer(settings=tiny_settings(model_folder, server={"drain_seconds": 0.2}))
    server.start()
    with connected(server.ready.result(30)) as connection:
        stream = connection.client.generate(ANY)
        next(stream)
        assert is_stuck.wait(10)
        server.stop()

        with pytest.raises(UnavailableError) as caught:
            list(stream)
        with pytest.raises(EngineStoppedError, match="does not end"):
            server.ended.result(10)
    assert caught.value.reason == "SHUTTING_DOWN"
    assert not may_go_on.is_set()
    may_go_on.set()


def test_the_engine_runs_on_as_many_threads_as_are_set(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads of adapters share the machine with it, and have threads of their own."""
    num_before, seen = torch.get_num_threads(), []
    step = Schedule.step

    def note_threads(schedule: Schedule) -> None:
        seen.append(torch.get_num_threads())
        step(schedule)

    monkeypatch.setattr(Schedule, "step", note_threads)
    settings = tiny_settings(model_folder, model={"num_threads": 3})
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        connection.client.generate_once(ANY)
    torch.set_num_threads(num_before)

    assert set(seen) == {3}


def test_a_folder_without_a_model_ends_the_server(tmp_path: Path) -> None:
    """Whoever started it learns why, and no listener is left open."""
    with (
        pytest.raises(SettingsError, match="not a model folder"),
        running_server(tiny_settings(tmp_path)),
    ):
        pass


def test_a_checkout_that_is_not_installed_can_serve(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an installed package knows its version."""

    def find_nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("lokr_serve.app.version", find_nothing)
    with running_server(tiny_settings(model_folder)) as server:
        url = f"http://{server.ready.result().metrics_listen}/metrics"
        with urlopen(url, timeout=10) as reply:
            scrape = reply.read().decode()

    assert 'lokr_serve_build_info{version="unknown"} 1.0' in scrape

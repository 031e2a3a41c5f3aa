"""How streams of images end when something happens to them: in one status, and nothing leaks."""

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from lokr_serve.client import (
    AbortedError,
    Client,
    ClientError,
    DeadlineExceededError,
    Health,
    UnavailableError,
)
from lokr_serve.types import (
    AdapterWeight,
    GeneratedImage,
    ImageFinished,
    ImageParams,
    ImageProgress,
    ImageRequest,
    ImageStarted,
)
from tests.serve.cli.test_serve import read_ready, serving
from tests.serve.rpc.test_generate_image import of_kind, request
from tests.serve.running import Connection, connected, running_server, tiny_settings

INK = AdapterWeight(adapter_id="ink")
SHORT = ImageParams(width=16, height=16, num_steps=1, seed=1)
LONG = ImageParams(width=16, height=16, num_steps=900, seed=1)


def long_request(*adapters: AdapterWeight) -> ImageRequest:
    """Return a request that runs for as long as a test needs it."""
    return request(*adapters, params=LONG)


def wait_for_step(stream: Iterator[object]) -> None:
    """Read until a step is done: the request runs."""
    while not isinstance(next(stream), ImageProgress):
        pass


def wait_until_free(server: Connection) -> None:
    """Wait until no request holds the adapter; unloading waits for just that."""
    server.admin.unload_adapter("ink", drain_seconds=20)


@pytest.fixture
def server(pipeline_folder: Path, image_adapter_folder: Path) -> Iterator[Connection]:
    """A server of this test's own, with one request at a time and one place to wait."""
    settings = tiny_settings(
        pipeline_folder, image_adapter_folder, image={"max_requests": 1, "max_queue": 1}
    )
    with (
        running_server(settings) as running,
        connected(running.ready.result()) as connection,
    ):
        yield connection


def test_a_client_that_leaves_frees_its_place(server: Connection) -> None:
    """The work stops at the next step, and the adapter can be unloaded."""
    stream = server.client.generate_image(long_request(INK))
    wait_for_step(stream)
    stream.close()
    wait_until_free(server)

    assert server.client.generate_image_once(request(params=SHORT)).images


def test_a_deadline_in_the_middle_ends_the_stream(server: Connection) -> None:
    """What nobody waits for is not computed."""
    stream = server.client.generate_image(long_request(INK), timeout_seconds=1.5)

    assert isinstance(next(stream), ImageStarted)
    with pytest.raises(DeadlineExceededError):
        list(stream)
    wait_until_free(server)


def test_a_full_queue_says_when_to_come_again(server: Connection) -> None:
    """The request that does not fit is refused at once; the others are served."""
    running = server.client.generate_image(long_request())
    wait_for_step(running)
    waiting = server.client.generate_image(request(params=SHORT))
    next(waiting)

    with pytest.raises(ClientError) as caught:
        list(server.client.generate_image(request(params=SHORT)))
    assert caught.value.reason == "QUEUE_FULL"
    assert caught.value.retry_seconds is not None
    assert 0.5 <= caught.value.retry_seconds <= 75
    running.close()
    assert len(of_kind(GeneratedImage, waiting)) == 1


def test_an_unload_by_force_ends_the_image_that_uses_the_adapter(server: Connection) -> None:
    """It ends at once, and says why."""
    stream = server.client.generate_image(long_request(INK))
    wait_for_step(stream)
    freed_bytes = server.admin.unload_adapter("ink", drain_seconds=0, force=True)

    with pytest.raises(AbortedError, match="ink") as caught:
        list(stream)
    assert caught.value.reason == "ADAPTER_UNLOADED"
    assert freed_bytes > 0


def test_a_stopping_server_lets_images_finish(pipeline_folder: Path) -> None:
    """A rollout costs no image that can end in time."""
    with running_server(tiny_settings(pipeline_folder)) as running:
        with connected(running.ready.result()) as connection:
            params = ImageParams(width=16, height=16, num_steps=50)
            stream = connection.client.generate_image(request(params=params))
            wait_for_step(stream)
            running.stop()
            *_, last = stream
        running.ended.result(30)

    assert isinstance(last, ImageFinished)


def test_a_stopping_server_ends_images_that_take_too_long(pipeline_folder: Path) -> None:
    """They end in a status that sends the client elsewhere."""
    settings = tiny_settings(pipeline_folder, server={"drain_seconds": 0.2})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        stream = connection.client.generate_image(long_request())
        wait_for_step(stream)
        running.stop()

        with pytest.raises(UnavailableError) as caught:
            list(stream)
        assert caught.value.reason == "SHUTTING_DOWN"


def test_each_kind_of_server_tells_what_it_serves(
    shared_image_server: Connection, shared_server: Connection
) -> None:
    """A gateway that asks for a service must not be sent to a server that lacks it."""
    text, images = "lokr_serve.v1.TextService", "lokr_serve.v1.ImageService"
    adapters = "lokr_serve.v1.AdapterService"
    expected = {
        shared_image_server: (Health.NOT_SERVING, Health.SERVING),
        shared_server: (Health.SERVING, Health.NOT_SERVING),
    }

    for server, (text_health, image_health) in expected.items():
        assert server.client.health(text) is text_health
        assert server.client.health(images) is image_health
        assert server.client.health(adapters) is Health.SERVING
        assert server.client.health() is Health.SERVING


def test_images_and_steps_are_counted(shared_image_server: Connection) -> None:
    """Dashboards show what a server does."""
    list(shared_image_server.client.generate_image(request(params=SHORT)))
    with urlopen(f"http://{shared_image_server.addresses.metrics_listen}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    values = {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
    }

    for name in (
        "lokr_serve_images_total",
        "lokr_serve_denoising_steps_total",
        "lokr_serve_image_request_seconds_count",
        "lokr_serve_step_rows_count",
        "lokr_serve_queue_seconds_count",
    ):
        assert values[name] > 0
    assert values["lokr_serve_requests_waiting"] == 0


def test_a_signal_in_the_middle_of_an_image_lets_it_finish(pipeline_folder: Path) -> None:
    """The program as an operator runs it: SIGTERM drains, and the exit code is 0."""
    with serving(pipeline_folder, "--threads", "1") as process:
        with Client(read_ready(process)["listen"]) as client:
            params = ImageParams(width=16, height=16, num_steps=50)
            stream = client.generate_image(request(params=params))
            wait_for_step(stream)
            process.send_signal(signal.SIGTERM)
            *_, last = stream
        process.communicate(timeout=60)

    assert isinstance(last, ImageFinished)
    assert process.returncode == 0

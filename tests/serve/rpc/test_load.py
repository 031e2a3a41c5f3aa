"""A server under load, over real channels: who waits, who is refused, and what they are told."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from lokr_core import Adapter, AdapterReader
from lokr_serve.client import ClientError, DeadlineExceededError, ResourceExhaustedError
from lokr_serve.rpc.status import PUSHBACK_TRAILER
from lokr_serve.types import (
    AdapterWeight,
    Chunk,
    Finished,
    GeneratedImage,
    GenerationRequest,
    ImageParams,
    ImageProgress,
    ImageRequest,
    LoadSpec,
    Priority,
    SamplingParams,
    Started,
    TextPrompt,
)
from lokr_serve.v1 import text_pb2
from lokr_serve.v1.text_pb2_grpc import TextServiceStub
from tests.serve.rpc.details import read_detail
from tests.serve.running import Connection, connected, running_server, tiny_settings

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH
POET = AdapterWeight(adapter_id="poet")
INK = AdapterWeight(adapter_id="ink")


def text(
    max_tokens: int = 2, priority: Priority = NORMAL, *adapters: AdapterWeight
) -> GenerationRequest:
    """Return a request for so many tokens."""
    return GenerationRequest(
        prompt=TextPrompt(text="The quick brown fox"),
        adapters=adapters,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        priority=priority,
    )


def image(num_steps: int = 1, *adapters: AdapterWeight) -> ImageRequest:
    """Return a request for one image in so many steps."""
    params = ImageParams(width=16, height=16, num_steps=num_steps, seed=1)
    return ImageRequest(prompt="a cat", adapters=adapters, params=params)


def read_until(stream: Iterator[object], kind: type[object]) -> None:
    """Read until an event of a kind has come."""
    while not isinstance(next(stream), kind):
        pass


def metric(server: Connection, name: str) -> float:
    """Return one value, by its line in the text of the metrics."""
    with urlopen(f"http://{server.addresses.metrics_listen}/metrics") as page:
        lines = page.read().decode().splitlines()
    (value,) = (line.split()[-1] for line in lines if line.startswith(f"lokr_serve_{name} "))
    return float(value)


def num_shed(server: Connection, reason: str) -> float:
    """Return how many requests have ended for a reason before an engine began with them."""
    return metric(server, f'requests_shed_total{{reason="{reason}"}}')


def expire(stream: Iterator[object]) -> None:
    """Read the first event, which says that the request is in line, until the deadline."""
    next(stream)
    with pytest.raises(DeadlineExceededError):
        next(stream)


def wait_for_shed(server: Connection, reason: str, count: float) -> None:
    """Wait until so many have ended for a reason; a client sees its own deadline first."""
    until = time.monotonic() + 20
    while num_shed(server, reason) != count:
        assert time.monotonic() < until


def settle(server: Connection) -> None:
    """Wait until requests that were left have left the server, too."""
    until = time.monotonic() + 20
    while not is_served(server):
        assert time.monotonic() < until


def is_served(server: Connection) -> bool:
    """Whether a request is let in."""
    try:
        server.client.generate_once(text())
    except ResourceExhaustedError:
        return False
    return True


@pytest.fixture(scope="module")
def server(model_folder: Path, adapter_folder: Path) -> Iterator[Connection]:
    """A server with one row and one place to wait, for tests that leave nothing behind."""
    settings = tiny_settings(
        model_folder, adapter_folder, text={"max_rows": 1, "max_queue": 1, "cache_tokens": 16384}
    )
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


@pytest.fixture(scope="module")
def image_server(pipeline_folder: Path, image_adapter_folder: Path) -> Iterator[Connection]:
    """A server of images with one thread and one place to wait."""
    settings = tiny_settings(
        pipeline_folder, image_adapter_folder, image={"max_requests": 1, "max_queue": 1}
    )
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


@pytest.fixture
def busy(server: Connection) -> Iterator[Connection]:
    """The same, with a request in its only row."""
    running = server.client.generate(text(8000))
    read_until(running, Chunk)
    yield server
    running.close()
    settle(server)


def test_an_urgent_request_takes_the_place_of_one_that_is_not(busy: Connection) -> None:
    """Who makes way learns so in one status, with a time to come again; the urgent one is next."""
    num_before = num_shed(busy, "shed")
    message = text_pb2.GenerateRequest(text="x", priority="PRIORITY_LOW")
    low = busy.text.Generate(message, timeout=30)
    assert next(low).WhichOneof("event") == "started"
    high = busy.client.generate(text(2, HIGH))
    assert isinstance(next(high), Started)

    with pytest.raises(grpc.RpcError):
        next(low)
    assert low.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "more urgent requests" in low.details()
    trailers = [(key, value) for key, value in low.trailing_metadata()]
    delay = read_detail(trailers, RetryInfo).retry_delay.ToMilliseconds()
    assert dict(trailers)[PUSHBACK_TRAILER] == str(delay)
    assert 500 <= delay <= 75_000
    assert num_shed(busy, "shed") == num_before + 1
    with pytest.raises(ClientError) as caught:
        list(busy.client.generate(text(2, HIGH)))
    assert caught.value.reason == "QUEUE_FULL"
    high.close()


def test_requests_that_wait_are_served_by_their_priority(
    model_folder: Path, adapter_folder: Path
) -> None:
    """With one row, the order in which they start is the order of their classes."""
    settings = tiny_settings(model_folder, adapter_folder, text={"max_rows": 1})
    began: list[str] = []

    def read(name: str, stream: Iterator[object]) -> None:
        read_until(stream, Chunk)
        began.append(name)
        for _ in stream:
            pass

    with running_server(settings) as running, connected(running.ready.result()) as server:
        first = server.client.generate(text(8000))
        read_until(first, Chunk)
        threads = []
        for priority in (LOW, NORMAL, HIGH):
            stream = server.client.generate(text(20, priority))
            next(stream)
            threads.append(threading.Thread(target=read, args=(priority.name, stream)))
            threads[-1].start()
        first.close()
        for thread in threads:
            thread.join(30)

    assert began == ["HIGH", "NORMAL", "LOW"]


def test_a_request_whose_deadline_passes_in_the_queue_never_runs(busy: Connection) -> None:
    """Its place is free at once, and no token of its prompt was computed."""
    shed, prompts = num_shed(busy, "deadline"), metric(busy, "prompt_tokens_total")

    expire(busy.client.generate(text(2), timeout_seconds=1.5))
    wait_for_shed(busy, "deadline", shed + 1)
    assert metric(busy, "prompt_tokens_total") == prompts
    waiting = busy.client.generate(text(2))
    assert isinstance(next(waiting), Started)
    waiting.close()


@pytest.fixture
def slow_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Adapters that are read only once the event is set."""
    may_read = threading.Event()
    read = AdapterReader.read

    def read_later(*args: Any) -> Adapter:
        assert may_read.wait(30)
        return read(*args)

    monkeypatch.setattr(AdapterReader, "read", read_later)
    yield may_read
    may_read.set()


def test_a_request_whose_deadline_passes_while_its_adapter_loads_never_runs(
    server: Connection, slow_loads: threading.Event
) -> None:
    """It waits like all others, and goes like them; the load goes on for the next one."""
    shed, prompts = num_shed(server, "deadline"), metric(server, "prompt_tokens_total")

    with pytest.raises(DeadlineExceededError):
        list(server.client.generate(text(2, NORMAL, POET), timeout_seconds=1.5))
    wait_for_shed(server, "deadline", shed + 1)
    assert metric(server, "prompt_tokens_total") == prompts
    slow_loads.set()
    *_, last = server.client.generate(text(2, NORMAL, POET))
    assert isinstance(last, Finished)


def test_a_request_for_images_whose_deadline_passes_in_line_never_runs(
    image_server: Connection,
) -> None:
    """Neither in line for a thread nor while its adapter loads does it hold anything."""
    shed, images = num_shed(image_server, "deadline"), metric(image_server, "images_total")
    running = image_server.client.generate_image(image(900))
    read_until(running, ImageProgress)

    for number in (1, 2):  # more than there are places
        expire(image_server.client.generate_image(image(), timeout_seconds=1.5))
        wait_for_shed(image_server, "deadline", shed + number)
    running.close()
    assert image_server.client.generate_image_once(image()).images
    assert metric(image_server, "images_total") == images + 1


def test_a_request_for_images_whose_deadline_passes_while_its_adapter_loads_never_runs(
    image_server: Connection, slow_loads: threading.Event
) -> None:
    """The next one finds the adapter loaded."""
    shed = num_shed(image_server, "deadline")

    with pytest.raises(DeadlineExceededError):
        list(image_server.client.generate_image(image(1, INK), timeout_seconds=1.5))
    wait_for_shed(image_server, "deadline", shed + 1)
    slow_loads.set()
    events = list(image_server.client.generate_image(image(1, INK)))
    assert sum(isinstance(event, GeneratedImage) for event in events) == 1


@pytest.fixture(scope="module")
def limited(model_folder: Path, adapter_folder: Path) -> Iterator[Connection]:
    """A server that limits every client, those without credentials together, and adapters."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        limits={
            "client_requests": 2,
            "adapter_requests": 1,
            "adapter_rate": 1.0,
            "client_adapter_bytes": 1000,
        },
    )
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


def test_a_limit_is_told_with_its_name_and_given_back_at_every_end(limited: Connection) -> None:
    """A stream that is cancelled, and one whose deadline passes, count no more."""
    first = limited.client.generate(text(8000))
    second = limited.client.generate(text(8000), timeout_seconds=2.5)
    for stream in (first, second):
        next(stream)

    with pytest.raises(ClientError) as caught:
        list(limited.client.generate(text()))
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
    )
    assert "as many requests as it may, 2" in str(caught.value)
    assert caught.value.retry_seconds is not None
    with pytest.raises(DeadlineExceededError):
        list(second)
    settle(limited)
    first.close()
    assert num_shed(limited, "limit") >= 1


def test_an_adapter_that_is_too_much_for_its_client_is_not_registered(limited: Connection) -> None:
    """Nothing but an unload would help, so no time is named."""
    with pytest.raises(ResourceExhaustedError, match="1000 bytes of adapters and has 0") as caught:
        limited.admin.load_adapter(LoadSpec(adapter_id="mine", source="poet"))

    assert (caught.value.reason, caught.value.retry_seconds) == ("LIMIT_EXCEEDED", None)
    assert "mine" not in [adapter.adapter_id for adapter in limited.admin.list_adapters()]


def retrying(address: str) -> grpc.Channel:
    """Return a channel that retries what is exhausted, as a client may choose to."""
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    return grpc.insecure_channel(address, options=[("grpc.service_config", json.dumps(config))])


def test_a_client_that_retries_waits_as_long_as_it_is_told(limited: Connection) -> None:
    """The push-back goes before its own back-off, so a crowd comes back when there is room."""
    with retrying(limited.addresses.listen) as channel:
        stub = TextServiceStub(channel)
        message = text_pb2.GenerateOnceRequest(text="x", adapters=[{"adapter_id": "plain"}])
        message.sampling.max_tokens = 1
        stub.GenerateOnce(message, timeout=30)
        began_at = time.monotonic()
        stub.GenerateOnce(message, timeout=30)
        waited = time.monotonic() - began_at

    assert 0.7 <= waited <= 2.5  # a token each second, one of which was there at first


def test_names_that_nobody_registered_are_not_counted(limited: Connection) -> None:
    """A client that makes names up gets NOT_FOUND for each, and none of the limits."""
    codes = set()
    for number in range(30):
        unknown = AdapterWeight(adapter_id=f"unknown-{number % 2}")
        with pytest.raises(ClientError) as caught:
            list(limited.client.generate(text(2, NORMAL, unknown)))
        codes.add(caught.value.code)

    assert codes == {grpc.StatusCode.NOT_FOUND}

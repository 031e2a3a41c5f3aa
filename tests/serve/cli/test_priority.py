"""``--priority``: who gives it, and what comes of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lokr_serve.client import ClientError
from lokr_serve.types import (
    Chunk,
    GenerationRequest,
    ImageParams,
    ImageProgress,
    ImageRequest,
    SamplingParams,
    TextPrompt,
)
from tests.serve.cli.conftest import Run
from tests.serve.running import Connection, connected, running_server, tiny_settings

SOON = ("--priority", "high", "--timeout", "2")
LASTING = SamplingParams(max_tokens=8000, ignore_eos=True)


def shed_reason(waiting: Iterator[object]) -> str:
    """Return why a request that waits was ended."""
    with pytest.raises(ClientError) as caught:
        next(waiting)
    return caught.value.reason


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Connection]:
    """A server with one row and one place to wait."""
    settings = tiny_settings(model_folder, text={"max_rows": 1, "max_queue": 1})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


@pytest.fixture(scope="module")
def image_server(pipeline_folder: Path) -> Iterator[Connection]:
    """The same for images."""
    settings = tiny_settings(pipeline_folder, image={"max_requests": 1, "max_queue": 1})
    with running_server(settings) as running, connected(running.ready.result()) as connection:
        yield connection


def test_an_urgent_text_takes_the_place_of_another(run: Run, server: Connection) -> None:
    """Nothing says better that the priority has arrived."""
    request = GenerationRequest(prompt=TextPrompt(text="x"), sampling=LASTING)
    first = server.client.generate(request)
    while not isinstance(next(first), Chunk):
        pass
    waiting = server.client.generate(request)
    next(waiting)
    run("generate", "--prompt", "x", *SOON, "--server", server.addresses.listen)

    assert shed_reason(waiting) == "QUEUE_FULL"
    first.close()


def test_an_urgent_image_takes_the_place_of_another(
    run: Run, image_server: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for images."""
    monkeypatch.chdir(tmp_path)
    params = ImageParams(width=16, height=16, num_steps=900, seed=1)
    request = ImageRequest(prompt="a cat", params=params)
    first = image_server.client.generate_image(request)
    while not isinstance(next(first), ImageProgress):
        pass
    waiting = image_server.client.generate_image(request)
    next(waiting)
    run("image", "--prompt", "a cat", *SOON, "--server", image_server.addresses.listen)

    assert shed_reason(waiting) == "QUEUE_FULL"
    first.close()


def test_a_priority_that_is_none_is_refused_with_those_there_are(run: Run) -> None:
    """Before anything is sent."""
    outcome = run("generate", "--prompt", "x", "--priority", "urgent")

    assert outcome.code == 2
    assert all(name in outcome.err for name in ("low", "normal", "high"))

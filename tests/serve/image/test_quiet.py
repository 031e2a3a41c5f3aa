"""What a server's log has of diffusers: words on files, and none on requests that it serves."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers.utils.logging import (
    disable_propagation,
    enable_default_handler,
    get_verbosity,
    set_verbosity,
)

from lokr_serve.backends.image import load_pipeline_model
from lokr_serve.types import ImageParams, ImageRequest
from tests.serve.running import connected, running_server, tiny_settings
from tests.tiny.pipelines import save_pipeline


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """Return what diffusers says from here on; its loggers keep it from the others."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    verbosity = get_verbosity()
    logging.getLogger("diffusers").addHandler(handler)
    yield said
    logging.getLogger("diffusers").removeHandler(handler)
    set_verbosity(verbosity)
    enable_default_handler()
    disable_propagation()


def test_no_request_is_remarked_upon_and_no_prompt_quoted(
    tmp_path: Path, remarks: list[str]
) -> None:
    """FLUX shows CLIP the start of a prompt alone, and diffusers would log the rest each time."""
    settings = tiny_settings(save_pipeline(tmp_path / "model", "flux"))
    params = ImageParams(width=16, height=16, num_steps=3, scheduler="DPMSolverSinglestepScheduler")
    request = ImageRequest(prompt="a secret cat " * 9, params=params)
    with running_server(settings) as server, connected(server.ready.result()) as connection:
        remarks.clear()
        made = connection.client.generate_image_once(request)

    assert len(made.images) == 1
    assert remarks == []


def test_diffusers_writes_no_lines_of_its_own_form(tmp_path: Path, remarks: list[str]) -> None:
    """A log is read line by line as JSON, and one other line breaks its reader."""
    settings = tiny_settings(save_pipeline(tmp_path / "model", "flux"))
    load_pipeline_model(settings.model)
    diffusers = logging.getLogger("diffusers")

    assert diffusers.propagate
    assert not any(type(handler) is logging.StreamHandler for handler in diffusers.handlers)

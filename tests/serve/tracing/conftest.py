"""A collector, and servers that send their spans to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Connection, connected, running_server, tiny_settings
from tests.serve.tracing.collector import Collector, running_collector


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """A collector; spans come to it soon after their calls."""
    with pytest.MonkeyPatch.context() as patch, running_collector() as running:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # milliseconds
        yield running


@pytest.fixture(scope="session")
def traced_server(
    collector: Collector, model_folder: Path, adapter_folder: Path
) -> Iterator[Connection]:
    """A server of text that is traced."""
    settings = tiny_settings(
        model_folder,
        adapter_folder,
        tracing={"endpoint": f"http://{collector.address}", "service_name": "tiny"},
        server={"access_log": "all"},
    )
    with (
        running_server(settings) as server,
        connected(server.ready.result()) as connection,
    ):
        yield connection


@pytest.fixture(scope="session")
def traced_image_server(
    collector: Collector, pipeline_folder: Path, image_adapter_folder: Path
) -> Iterator[Connection]:
    """A server of images that is traced."""
    settings = tiny_settings(
        pipeline_folder,
        image_adapter_folder,
        tracing={"endpoint": f"http://{collector.address}"},
    )
    with (
        running_server(settings) as server,
        connected(server.ready.result()) as connection,
    ):
        yield connection

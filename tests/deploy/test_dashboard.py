"""The dashboard: well formed, and in each panel numbers of what a running server does."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from lokr_serve.types import (
    AdapterWeight,
    ApplyMode,
    GenerationRequest,
    ImageParams,
    ImageRequest,
    LoadSpec,
    SamplingParams,
    TextPrompt,
)
from tests.deploy.names import metric_names, served_names
from tests.deploy.programs import DEPLOY, require, succeed
from tests.deploy.prometheus import Prometheus, scraping
from tests.serve.running import Connection, connected, running_server, tiny_settings
from tests.tiny import peft_lokr, save_model, tiny_llama, tiny_tokenizer
from tests.tiny.pipelines import save_pipeline

DASHBOARD = json.loads((DEPLOY / "grafana" / "lokr-serve.json").read_text())
WINDOW = "10s"  # in place of $__rate_interval
LIMIT_SECONDS = 60.0


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Return every query, as Grafana asks it once its variables are filled in."""
    return [fill(target["expr"]) for panel in panels() for target in panel["targets"]]


def fill(expression: str) -> str:
    """Fill in Grafana's variables."""
    return expression.replace("$__rate_interval", WINDOW).replace("$instance", ".*")


def test_the_dashboard_fits_any_grafana() -> None:
    """It is found by its uid, and asks whichever Prometheus is chosen."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    sources = [panel["datasource"] for panel in panels()]
    sources += [target["datasource"] for panel in panels() for target in panel["targets"]]

    assert DASHBOARD["uid"] == "lokr-serve"
    assert variables["datasource"]["type"] == "datasource"
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_panels_do_not_lie_on_each_other() -> None:
    """Grafana would move them, each time another way."""
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_asks_for_metrics_that_there_are(panel: dict[str, Any]) -> None:
    """A metric that was renamed leaves a panel that is empty, and that nobody misses."""
    for target in panel["targets"]:
        assert 'instance=~"$instance"' in target["expr"]
        assert metric_names(target["expr"]) <= served_names()


def test_every_query_parses(tmp_path: Path) -> None:
    """Prometheus reads each of them."""
    rules = [
        {"record": "x:y", "expr": query, "labels": {"n": str(n)}}
        for n, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    assert f"{len(rules)} rules found" in succeed("promtool", "check", "rules", file)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[Connection, Connection]]:
    """A server of texts and one of images."""
    require("prometheus")
    model = save_model(tmp_path / "model", tiny_llama(), tiny_tokenizer())
    peft_lokr(tiny_llama, tmp_path / "adapters" / "poet", seed=1)
    pipeline = save_pipeline(tmp_path / "tiny-sd", "stable-diffusion")
    with ExitStack() as stack:
        yield (
            _serving(stack, model, tmp_path / "adapters"),
            _serving(stack, pipeline, None),
        )


def test_every_panel_shows_what_a_running_server_does(
    replicas: tuple[Connection, Connection], tmp_path: Path
) -> None:
    """Labels, units and functions are right only if a query over real traffic gives numbers."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    targets = [each.addresses.metrics_listen for each in replicas]
    with scraping(targets, folder) as prometheus:
        empty = _wait_for_numbers(prometheus, *replicas)
        health = {rule["name"]: rule["health"] for rule in prometheus.rules()}

    assert empty == []
    assert set(health.values()) == {"ok"}


def _serving(stack: ExitStack, model: Path, adapters: Path | None) -> Connection:
    manifest = None
    if adapters is not None:
        manifest = adapters.parent / "manifest.yaml"
        manifest.write_text("adapters: [{id: declared, source: poet}]")
    settings = tiny_settings(model, adapters, adapters={"manifest": manifest})
    server = stack.enter_context(running_server(settings))
    return stack.enter_context(connected(server.ready.result()))


def _wait_for_numbers(prometheus: Prometheus, text: Connection, images: Connection) -> list[str]:
    """Make traffic until each query has had a number; return those that have had none in time."""
    missing = queries()
    deadline = time.monotonic() + LIMIT_SECONDS
    while missing and time.monotonic() < deadline:
        _make_traffic(text, images)
        missing = [
            query for query in missing if not any(map(math.isfinite, prometheus.query(query)))
        ]
    return missing


def _make_traffic(text: Connection, images: Connection) -> None:
    """Send requests of every kind, and bring an adapter anew."""
    for mode in (ApplyMode.UNMERGED, ApplyMode.MERGED, ApplyMode.MERGED):
        text.client.generate_once(
            GenerationRequest(
                prompt=TextPrompt(text="The quick"),
                adapters=(AdapterWeight(adapter_id="poet"),),
                apply_mode=mode,
                sampling=SamplingParams(max_tokens=4, ignore_eos=True),
            )
        )
    text.admin.unload_adapter("poet")
    text.admin.load_adapter(LoadSpec(adapter_id="poet", source="poet"))
    images.client.generate_image_once(
        ImageRequest(prompt="a house", params=ImageParams(num_steps=2, width=16, height=16))
    )

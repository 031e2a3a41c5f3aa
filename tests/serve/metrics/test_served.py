"""The metrics of a running server: documented, well formed, and as gateways read them."""

import re
import shutil
import subprocess
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from lokr_serve.metrics import ManifestMetrics, Metrics
from lokr_serve.types import AdapterWeight, ApplyMode, GenerationRequest, SamplingParams, TextPrompt
from scripts.generate_protos import ROOT
from tests.serve.rpc.test_probes import get
from tests.serve.running import Connection

SERIES = "lokr_serve_lora_requests_info"


def request(*adapters: AdapterWeight) -> GenerationRequest:
    """Return a short request."""
    return GenerationRequest(
        prompt=TextPrompt(text="The quick brown fox"),
        adapters=adapters,
        sampling=SamplingParams(max_tokens=3, temperature=0, ignore_eos=True),
        apply_mode=ApplyMode.UNMERGED,
    )


def scrape(server: Connection) -> str:
    """Return what a server exposes."""
    return get(server.addresses.metrics_listen, "/metrics")[1]


def names(families: Iterable[Metric]) -> set[str]:
    """Return the names of families, as documentation has them, ``_created`` ones left out."""
    suffixes = {"counter": "_total", "info": "_info"}
    found = {f"{family.name}{suffixes.get(family.type, '')}" for family in families}
    return {name for name in found if not name.endswith("_created")}


def documented() -> set[str]:
    """Return the metrics of the documentation's table."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def test_every_metric_is_documented_and_every_documented_one_served(
    shared_server: Connection,
) -> None:
    """Whoever builds a dashboard looks there, and nowhere else."""
    shared_server.client.generate_once(request())
    declared = Metrics(version="test")  # with what a server has once it has a manifest
    ManifestMetrics(declared.registry)
    served = names(text_string_to_metric_families(scrape(shared_server)))

    assert served | names(declared.registry.collect()) == documented()


def test_the_example_for_gateways_names_metrics_that_there_are() -> None:
    """A picker takes a metric that is not there for zero."""
    text = (ROOT / "docs" / "observability.md").read_text()
    specs = re.findall(r'Spec: "(\w+)', text)

    assert len(specs) == 6
    assert set(specs) <= documented()


def test_promtool_has_nothing_to_say(shared_server: Connection) -> None:
    """It knows the conventions that dashboards and databases rely on."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    shared_server.client.generate_once(request(AdapterWeight(adapter_id="poet", weight=0.5)))
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=scrape(shared_server),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def gateway_labels(server: Connection) -> dict[str, str]:
    """Return the labels of the one series that gateways read."""
    (family,) = (f for f in text_string_to_metric_families(scrape(server)) if f.name == SERIES)
    (sample,) = family.samples
    return sample.labels


def test_gateways_see_adapters_and_mixes_by_the_names_that_clients_send(
    shared_server: Connection,
) -> None:
    """A gateway compares the name in a call's metadata with those in the series."""
    mix = (AdapterWeight(adapter_id="poet", weight=0.5), AdapterWeight(adapter_id="pirate"))
    shared_server.client.generate_once(request(*mix))
    labels = gateway_labels(shared_server)
    running = labels["running_lora_adapters"].split(",")

    assert {"poet", "pirate", "pirate+poet*0.5"} <= set(running)
    assert running.index("poet") < running.index("pirate+poet*0.5")
    assert labels["waiting_lora_adapters"] == ""
    assert int(labels["max_lora"]) >= len(running)


def test_the_cache_of_an_idle_server_is_free(shared_server: Connection) -> None:
    """A gateway sends long prompts where there is room for them."""
    shared_server.client.generate_once(request())
    samples = {
        sample.name: sample
        for family in text_string_to_metric_families(scrape(shared_server))
        for sample in family.samples
    }

    assert samples["lokr_serve_kv_cache_utilization"].value == 0
    assert samples["lokr_serve_cache_config_info"].labels == {
        "block_size": "32",
        "num_gpu_blocks": str(16384 // 32),
    }
    assert samples["lokr_serve_adapter_free_bytes"].value > 0

"""What scrapers get: the text format, and how seldom it is made."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lokr_serve.metrics import AdapterActivity, Exposition, Metrics
from lokr_serve.metrics.exposition import MAX_FORMS, TextRenderer

VALUES = st.floats() | st.integers(-(2**70), 2**70)


class CountedLooks(Collector):
    """A metric that shows how often it was looked at."""

    def __init__(self) -> None:
        self.num_looks = 0

    def collect(self) -> Iterator[Metric]:
        """Count one more."""
        self.num_looks += 1
        yield GaugeMetricFamily("looks", "Looks.", self.num_looks)


@pytest.fixture
def looks() -> CountedLooks:
    """The metric."""
    return CountedLooks()


@pytest.fixture
def exposition(looks: CountedLooks) -> Exposition:
    """What renders it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(looks)
    return Exposition(registry)


@given(values=st.lists(VALUES, min_size=1, max_size=4), label=st.text(), text=st.text())
@settings(max_examples=30)
def test_the_text_is_that_of_the_client_library(values: list[float], label: str, text: str) -> None:
    """The format has more corners than one sees: exponents, escapes, infinity, order."""
    registry = CollectorRegistry()
    renderer = TextRenderer(registry)
    gauge = Gauge("g", text, ("z", "a"), registry=registry)
    counter = Counter("c", "Help.", ("a",), registry=registry)
    histogram = Histogram("h_seconds", "Help.", ("a",), registry=registry)
    Info("i", "Help.", registry=registry).info({"version": label})
    for value in values:
        gauge.labels(label, "x").set(value)
        counter.labels(label).inc(abs(value))
        histogram.labels(label).observe(value)

        assert renderer.render() == generate_latest(registry)


def test_the_text_of_every_metric_is_that_of_the_client_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever kind of metric is added: a scrape is the same as without the shortcut."""
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    monkeypatch.setattr("lokr_serve.metrics.exposition.MAX_LINES", 50)
    metrics = Metrics(version="test")
    metrics.watch_activity(
        lambda: AdapterActivity(max_adapters=3, resident=["a" * 2000], waiting=["b"])
    )
    metrics.adapter_requests.add("a")
    renderer = TextRenderer(metrics.registry)
    renderer.render()  # from here on it remembers

    assert renderer.render() == generate_latest(metrics.registry)


async def test_scrapers_that_come_together_cost_as_much_as_one(
    exposition: Exposition, looks: CountedLooks
) -> None:
    """Every replica of a gateway scrapes every server twenty times a second."""
    await exposition.render("")
    bodies = await asyncio.gather(*(exposition.render("") for _ in range(20)))

    assert looks.num_looks == 2
    assert {body for body, _ in bodies} == {b"# HELP looks Looks.\n# TYPE looks gauge\nlooks 2.0\n"}


async def test_what_a_scrape_tells_is_never_older_than_the_scrape(
    exposition: Exposition, looks: CountedLooks
) -> None:
    """Whoever has seen a call end finds it counted."""
    for _ in range(3):
        looks.num_looks += 10
        expected = looks.num_looks + 1
        body, _ = await exposition.render("")

        assert body.endswith(f"\nlooks {expected}.0\n".encode())


async def test_a_scraper_that_goes_away_takes_nothing_from_others(exposition: Exposition) -> None:
    """They wait for the same rendering."""
    await exposition.render("")
    first = asyncio.create_task(exposition.render(""))
    second = asyncio.create_task(exposition.render(""))
    await asyncio.sleep(0)
    first.cancel()
    body, content_type = await second

    assert body.endswith(b"looks 2.0\n")
    assert content_type.startswith("text/plain; version=0.0.4")


async def test_each_form_is_rendered_for_those_who_ask_for_it(exposition: Exposition) -> None:
    """Prometheus asks for OpenMetrics; gateways take text."""
    body, content_type = await exposition.render("application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_forms_that_scrapers_make_up_are_not_remembered_for_ever(
    exposition: Exposition,
) -> None:
    """Anyone who reaches the port can ask for one version after the other."""
    for version in range(3 * MAX_FORMS):
        accept = f"application/openmetrics-text; version=1.0.{version}"
        body, _ = await exposition.render(accept)

        assert body.endswith(b"# EOF\n")
    assert exposition.num_forms <= MAX_FORMS

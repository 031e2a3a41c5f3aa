"""How spans leave, and what it costs where there is no collector, or no OpenTelemetry."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lokr_serve.calls import CallRecord
from lokr_serve.config import TracingSettings
from lokr_serve.errors import SettingsError
from lokr_serve.tracing import build_tracer
from tests.serve.running import RunningServer, connected, tiny_settings
from tests.serve.tracing.collector import WAIT_SECONDS, Collector
from tests.serve.tracing.test_traced_calls import request

NOBODY = "http://127.0.0.1:1"  # no port that anyone listens on


async def test_the_last_spans_are_sent_before_the_end(collector: Collector) -> None:
    """What happened just before a restart is what one wants to know."""
    settings = TracingSettings(endpoint=f"http://{collector.address}")
    tracer = build_tracer(settings, version="1")
    assert tracer is not None
    tracer.end(tracer.begin("S/last", ()), CallRecord(), request_id="the-last", code="OK")
    await tracer.close(WAIT_SECONDS)

    assert collector.trace("the-last").server.name == "S/last"


async def test_a_collector_that_is_away_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    """Tracing is the least of what a server does; its spans wait, and in the end are dropped."""
    tracer = build_tracer(TracingSettings(endpoint=NOBODY), version="1")
    assert tracer is not None
    began = time.monotonic()
    for _ in range(3000):  # more than may wait
        tracer.end(tracer.begin("S/m", ()), CallRecord(), request_id="r", code="OK")
    seconds = time.monotonic() - began
    began_at = time.monotonic()
    await tracer.close(0.5)

    assert seconds < 30  # each export of 512 takes ten until it is given up
    assert time.monotonic() - began_at < 5
    assert "could not be sent within 0.5 s" in caplog.text


def test_a_server_whose_collector_is_away_serves_and_stops(
    model_folder: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests and the end of the server take as long as they do without tracing."""
    monkeypatch.setattr("lokr_serve.app.FLUSH_SECONDS", 0.5)
    settings = tiny_settings(model_folder, adapter_folder, tracing={"endpoint": NOBODY})
    server = RunningServer(settings=settings)
    server.start()
    with connected(server.ready.result(60)) as connection:
        began_at = time.monotonic()
        connection.client.generate_once(request("untold"))
        served_at = time.monotonic()
    server.stop()
    server.ended.result(30)

    assert served_at - began_at < 10
    assert time.monotonic() - served_at < 20


def test_an_endpoint_without_opentelemetry_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that silently makes no spans would be found out when they are needed."""
    monkeypatch.delitem(sys.modules, "lokr_serve.tracing.export", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)

    with pytest.raises(SettingsError, match=r"tracing.endpoint .*lokr-serve\[tracing\]"):
        build_tracer(TracingSettings(endpoint=NOBODY), version="1")


def test_without_an_endpoint_opentelemetry_is_not_even_imported() -> None:
    """It is optional, and costs nothing where it is not wanted."""
    script = (
        "import sys; import lokr_serve.rpc.interceptors.observation\n"
        "from lokr_serve.config import TracingSettings\n"
        "from lokr_serve.tracing import build_tracer\n"
        "assert build_tracer(TracingSettings(), version='1') is None\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )

    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

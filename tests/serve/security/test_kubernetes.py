"""The variables that Kubernetes puts into pods beside a Service of the server's name."""

import os
from pathlib import Path

import pytest

from lokr_serve.client import Client, Health
from lokr_serve.types import GenerationRequest, SamplingParams, TextPrompt
from tests.serve.cli.test_serve import read_ready, serving

# As a Service ``lokr-serve`` with three named ports gives them, and one ``lokr-serve-client``.
SERVICE_LINKS = {
    "LOKR_SERVE_SERVICE_HOST": "10.96.12.34",
    "LOKR_SERVE_SERVICE_PORT": "50051",
    "LOKR_SERVE_SERVICE_PORT_GRPC": "50051",
    "LOKR_SERVE_SERVICE_PORT_ADMIN": "50052",
    "LOKR_SERVE_SERVICE_PORT_METRICS": "9090",
    "LOKR_SERVE_PORT": "tcp://10.96.12.34:50051",
    "LOKR_SERVE_PORT_50051_TCP": "tcp://10.96.12.34:50051",
    "LOKR_SERVE_PORT_50051_TCP_ADDR": "10.96.12.34",
    "LOKR_SERVE_PORT_50051_TCP_PORT": "50051",
    "LOKR_SERVE_PORT_50051_TCP_PROTO": "tcp",
    "LOKR_SERVE_PORT_50052_TCP": "tcp://10.96.12.34:50052",
    "LOKR_SERVE_PORT_9090_TCP": "tcp://10.96.12.34:9090",
    "LOKR_SERVE_CLIENT_SERVICE_HOST": "10.96.12.35",
    "LOKR_SERVE_CLIENT_PORT": "tcp://10.96.12.35:80",
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "KUBERNETES_PORT": "tcp://10.96.0.1:443",
    "HOSTNAME": "lokr-serve-0",
}


def test_a_server_starts_beside_a_service_of_its_name(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look like settings to whoever reads prefixes too freely; only two underscores count."""
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOKR_SERVE__TEXT__MAX_ROWS", "3")
    request = GenerationRequest(
        prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=2, ignore_eos=True)
    )
    with serving(model_folder, "--threads", "1") as process:
        ready = read_ready(process)
        with Client(ready["listen"]) as client:
            health, completion = client.health(), client.generate_once(request)
        process.terminate()
        process.communicate(timeout=60)

    assert set(SERVICE_LINKS) <= set(os.environ)
    assert health is Health.SERVING
    assert completion.finished[0].usage.completion_tokens == 2
    assert process.returncode == 0

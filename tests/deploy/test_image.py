"""The Dockerfile, and in a long test that has to be asked for, the image."""

import json
import os
import signal
from pathlib import Path

import pytest

from lokr_serve.client import Client
from lokr_serve.types import AdapterWeight, GenerationRequest, SamplingParams, TextPrompt
from scripts.generate_protos import ROOT
from tests.deploy.images import FREE_PORTS, built
from tests.deploy.programs import run, succeed
from tests.tiny import peft_lokr, save_model, tiny_llama, tiny_tokenizer

DOCKERFILE = ROOT / "Dockerfile"
ASKED_FOR = "LOKR_TEST_IMAGE"
SERVE = ("serve", "--model=/srv/model", "--adapter-dir=/srv/adapters", *FREE_PORTS)
REQUEST = GenerationRequest(
    prompt=TextPrompt(text="The quick"),
    adapters=(AdapterWeight(adapter_id="poet"),),
    sampling=SamplingParams(max_tokens=8),
)


def test_the_dockerfile_keeps_the_rules_of_its_trade() -> None:
    """Hadolint knows what makes images large, or builds differ from day to day."""
    succeed("hadolint", DOCKERFILE)


def test_an_unpinned_package_is_caught(tmp_path: Path) -> None:
    """The check above is worth what it catches."""
    file = tmp_path / "Dockerfile"
    file.write_text("FROM debian:bookworm\nRUN pip install torch\n")

    assert "DL3013" in run("hadolint", file).stdout


def test_the_build_sees_only_what_the_image_is_made_of() -> None:
    """A checkout has gigabytes of environments and results beside the sources."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    admitted = {line[1:] for line in lines if line.startswith("!")}
    copies = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ")]
    copied = {name for line in copies if "--from" not in line for name in line.split()[1:-1]}

    assert lines[0] == "*"
    assert admitted == copied


@pytest.mark.timeout(1800)
@pytest.mark.skipif(ASKED_FOR not in os.environ, reason=f"takes minutes; set {ASKED_FOR}=1")
@pytest.mark.skipif(os.geteuid() != 0, reason="an image is built and run as root here")
def test_the_image_serves_without_root_on_a_root_file_system_that_is_read_only(
    tmp_path: Path,
) -> None:
    """It is built as its documentation says, and run as the manifests say."""
    data = tmp_path / "data"
    save_model(data / "model", tiny_llama(), tiny_tokenizer())
    peft_lokr(tiny_llama, data / "adapters" / "poet", seed=1)
    _let_everyone_read(data)
    storage = tmp_path / "storage"
    storage.mkdir()
    with built(storage) as image:
        config = image.config()
        with image.run(data, *SERVE) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            user = _user(process.pid)
            with Client(ready["listen"]) as client:
                completion = client.generate_once(REQUEST)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)

    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["lokr-serve"]
    assert set(config["ExposedPorts"]) == {"50051/tcp", "50052/tcp", "9090/tcp"}
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert ready["event"] == "ready"
    assert user == "10001"
    assert completion.started.mix_name == "poet"
    assert process.returncode == 0, errors


def _let_everyone_read(folder: Path) -> None:
    """Give files the rights that those of a volume have to have."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


def _user(pid: int) -> str:
    """Return the user id that a process runs as."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Uid:"))
    return line.split()[1]

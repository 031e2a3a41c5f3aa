"""``serve``, as the program that users start."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lokr_serve.client import Client, Health
from lokr_serve.types import GenerationRequest, SamplingParams, TextPrompt

FREE_PORTS = ("--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
LONG = GenerationRequest(
    prompt=TextPrompt(text="x"), sampling=SamplingParams(max_tokens=8000, ignore_eos=True)
)


@contextmanager
def serving(model: Path, *flags: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the program; it is killed if the block leaves it running."""
    arguments = ("serve", "--model", str(model), *FREE_PORTS, "--metrics-listen", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-m", "lokr_serve", *arguments, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    """Wait for the line that says that the server is ready."""
    assert process.stdout is not None
    ready: dict[str, str] = json.loads(process.stdout.readline())
    return ready


def test_the_program_says_when_it_is_ready_and_ends_on_a_signal(model_folder: Path) -> None:
    """Supervisors read one line, and expect 0 after a signal."""
    with serving(model_folder, "--threads", "1") as process:
        ready = read_ready(process)
        with Client(ready["listen"]) as client:
            assert client.health() is Health.SERVING
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)

    assert ready["event"] == "ready"
    assert ready["model"] == str(model_folder)
    assert set(ready) == {"event", "listen", "admin_listen", "metrics_listen", "model"}
    assert out == ""
    assert process.returncode == 0


def test_a_second_signal_ends_it_at_once(model_folder: Path) -> None:
    """Who does not want to wait for the drain says so by repeating himself."""
    with serving(model_folder) as process:
        ready = read_ready(process)
        with Client(ready["listen"]) as client:
            stream = client.generate(LONG)
            next(stream)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "shutting down" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)

            assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_second_signal_ends_a_lame_duck_at_once(model_folder: Path) -> None:
    """The wait is for gateways; who has none in front need not sit through it."""
    with serving(model_folder, "--lame-duck-seconds", "600") as process:
        ready = read_ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "not ready any more" not in process.stderr.readline():
            pass
        with Client(ready["listen"]) as client:
            assert client.health() is Health.NOT_SERVING
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize(("has_model", "code"), [(False, 2), (True, 1)])
def test_a_model_that_cannot_be_loaded_is_one_line_of_error(
    model_folder: Path, tmp_path: Path, has_model: bool, code: int
) -> None:
    """A supervisor tells a mistake in the settings from a model whose files are damaged."""
    if has_model:
        shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with serving(tmp_path) as process:
        out, err = process.communicate(timeout=60)

    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-1].startswith("lokr-serve: model.path")
    assert os.fspath(tmp_path) in err

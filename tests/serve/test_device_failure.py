"""A device that has failed for good ends the process, so that its supervisor starts another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lokr_serve.client import Client, UnavailableError
from lokr_serve.types import GenerationRequest, TextPrompt

# The real program, in whose steps the device fails.
PROGRAM = """
import sys
import torch
from lokr_serve.cli import main
from lokr_serve.text.batching import PagedBatch

def fail(batch):
    raise torch.AcceleratorError("the device is gone")

PagedBatch.step = fail
main(sys.argv[1:])
"""


def test_a_device_error_that_sticks_ends_the_process_with_a_failure(model_folder: Path) -> None:
    """Its request gets a status, the exit code is 1, and the log has the cause."""
    free = [f for name in ("", "admin-", "metrics-") for f in (f"--{name}listen", "127.0.0.1:0")]
    command = [sys.executable, "-c", PROGRAM, "serve", "--model", str(model_folder), *free]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with Client(ready["listen"]) as client, pytest.raises(UnavailableError) as caught:
            list(client.generate(GenerationRequest(prompt=TextPrompt(text="x"))))
        _, log = process.communicate(timeout=60)

    assert caught.value.reason == "ENGINE_STOPPED"
    assert process.returncode == 1
    assert "AcceleratorError" in log

"""What clients of a server need not import."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "diffusers", "safetensors")


@pytest.mark.parametrize("module", ["lokr_serve.client", "lokr_serve.cli"])
def test_clients_do_not_import_what_only_servers_need(module: str) -> None:
    """Torch takes seconds and hundreds of MiB, in each program that only sends requests."""
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("[]\n", "")

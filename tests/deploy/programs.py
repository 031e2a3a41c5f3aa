"""Programs that check or run what is deployed; a test is skipped by name where one is missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.generate_protos import ROOT

DEPLOY = ROOT / "deploy"
LIMIT_SECONDS = 60.0


def require(program: str) -> str:
    """Return the path of a program, or skip the test that asks for it."""
    beside_python = Path(sys.executable).parent  # where a Python package puts it
    path = shutil.which(program) or shutil.which(program, path=str(beside_python))
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def run(program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, whatever it is."""
    return subprocess.run(
        [require(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def succeed(program: str, *arguments: str | Path) -> str:
    """Run a program that must succeed, and return its standard output."""
    outcome = run(program, *arguments)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout

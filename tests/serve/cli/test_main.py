"""The program itself."""

import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.serve.cli.conftest import Run


def test_the_program_tells_its_version(run: Run) -> None:
    """It is the first thing that is asked of who reports a fault."""
    outcome = run("--version")

    assert (outcome.code, outcome.out) == (0, f"lokr-serve {version('lokr-serve')}\n")


def test_a_checkout_that_is_not_installed_has_no_version(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an installed package knows its version."""

    def find_nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sys.modules["lokr_serve.cli.main"], "version", find_nothing)
    outcome = run("--version")

    assert (outcome.code, outcome.out) == (0, "lokr-serve, version unknown\n")

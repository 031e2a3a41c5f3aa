"""Running the command line in this process."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lokr_serve.cli import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs the program with the given arguments."""

    def run_program(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        code = caught.value.code
        return Outcome(
            code=code if isinstance(code, int) else 0, out=captured.out, err=captured.err
        )

    return run_program

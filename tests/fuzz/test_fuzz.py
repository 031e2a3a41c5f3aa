"""A slice of the fuzzer's long run, and proof that it would see a fault."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lokr_core import AdapterError, AdapterReader
from lokr_core.formats import read as reading
from lokr_core.formats.recipe import Recipe
from tests.fuzz.__main__ import main
from tests.fuzz.runner import Fuzzer
from tests.fuzz.seeds import base_spec, make_seeds

NUM_CASES = 1000


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    """Return a fuzzer over files of every kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "work").mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Fuzzer(spec=base_spec(), seeds=make_seeds(folder), folder=folder / "work")
    torch.set_num_threads(threads)


def test_mutated_files_are_read_right_or_refused_by_name(fuzzer: Fuzzer) -> None:
    """An adapter comes from strangers; whatever it holds, the server lives and says what it is."""
    report = fuzzer.run(NUM_CASES)

    assert report.findings == []
    assert report.outcomes["accepted"] > 0
    assert report.outcomes.total() == NUM_CASES


def test_case_follows_from_its_number(fuzzer: Fuzzer) -> None:
    """A finding must be seen again, in another process and on another day."""
    made = [fuzzer.make(case) for case in range(100)]

    assert made == [fuzzer.make(case) for case in range(100)]


def _zeroed(recipe: Recipe, content: Tensor) -> Tensor:
    del content
    return torch.zeros(recipe.layout.num_elements)


def test_recipe_that_serves_wrong_values_is_found(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept from one file must never decide what another holds."""
    monkeypatch.setattr(Recipe, "apply", _zeroed)
    report = Fuzzer(spec=fuzzer.spec, seeds=fuzzer.seeds, folder=fuzzer.folder).run(600)

    assert any("a used reader gives" in finding.problem for finding in report.findings)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ZeroDivisionError("x"), "ZeroDivisionError"),
        (AdapterError("something is wrong"), "names nothing"),
        (AdapterError("adapter_model.safetensors\x1b[2J"), "control characters"),
        (AdapterError("adapter_model.safetensors" * 40), "1000 characters"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_error_that_breaks_a_law_is_found(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str
) -> None:
    """A fuzzer that finds nothing must be known to find something."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(reading, "open_source", fail)
    report = fuzzer.run(1, first=1)

    assert [problem in finding.problem for finding in report.findings] == [True]


def test_command_fails_on_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a person or a machine runs says whether all is well by its exit status."""
    arguments = ["--cases", "20", "--seed", "3"]

    assert main(arguments) == 0
    assert '"findings": 0' in capsys.readouterr().out
    monkeypatch.setattr(AdapterReader, "read", lambda *_: 1 / 0)
    assert main(arguments) == 1

"""The base model outlives every swap unchanged, and the soak would notice if it did not."""

import json
from pathlib import Path

import pytest
import torch

from tests.oracle.peers import ARCHITECTURES, GPT2, Architecture
from tests.oracle.soak import Soak, main, soak

NUM_SWAPS = 120


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_swaps_leave_the_base_as_it_was(tmp_path: Path, architecture: Architecture) -> None:
    """One rounding error per swap would add up on a server that runs for weeks."""
    report = soak(architecture, tmp_path, num_swaps=NUM_SWAPS, seed=7)

    assert report.differences == []
    assert report.digest_after == report.digest_before
    assert len(report.swaps) == 9
    assert report.num_base_checks > NUM_SWAPS
    assert report.num_row_checks > 5


def test_a_base_that_changed_is_noticed(tmp_path: Path) -> None:
    """A check that cannot fail proves nothing; here one weight moves by one bit."""
    run = Soak(GPT2, tmp_path, seed=7)
    run.swap()
    weight = run.model.get_parameter("transformer.h.1.mlp.c_proj.weight")
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))

    report = run.finish()

    assert not report.has_passed
    assert report.digest_after != report.digest_before


def test_the_command_prints_a_line_for_each_architecture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The long run is read by people and by programs."""
    status = main(["--swaps", "9"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [(line["architecture"], line["num_swaps"]) for line in lines] == [
        ("llama", 5),
        ("gpt2", 4),
    ]
    assert all(line["passed"] for line in lines)

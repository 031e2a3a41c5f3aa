"""A short soak of images leaves nothing behind, and would notice if it did."""

import json
from pathlib import Path

import pytest
import torch

from lokr_core.cache import MergeCache
from tests.oracle.images.soak import ImageSoak, main
from tests.oracle.images.trained import FAMILIES

KINDS = ("peft-lokr", "lycoris-lokr")


def test_the_command_finds_nothing_held_lost_or_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cancels, deadlines, swaps and evictions, on a UNet and on a transformer."""
    status = main(["--images=10", "--kind=peft-lokr", "--kind=lycoris-lokr"])

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [line["family"] for line in lines] == ["stable-diffusion", "flux"]
    assert [line["leaks"] for line in lines] == [[], []]
    assert all(sum(line["ends"].values()) == 5 for line in lines)
    assert all(line["ends"]["finished"] for line in lines)


def test_a_base_that_changed_is_noticed(tmp_path: Path) -> None:
    """A check that cannot fail proves nothing; here one weight moves by one bit."""
    run = ImageSoak(FAMILIES["stable-diffusion"], tmp_path, kinds=KINDS[:1], seed=1)
    weight = run.stage.modules["unet"].get_parameter("conv_in.weight")
    with torch.no_grad():
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(torch.inf))

    run.judge()

    assert not run.report.has_passed
    assert run.report.digest_after != run.report.digest_before


def test_merged_weights_that_are_never_given_back_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would fill the cache for good."""
    monkeypatch.setattr(MergeCache, "release", lambda *_: None)
    run = ImageSoak(FAMILIES["flux"], tmp_path, kinds=KINDS, seed=1)

    run.run(8)

    assert run.report.merges
    assert run.report.leaks == ["merged weights of adapters that are gone"]

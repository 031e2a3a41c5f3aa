"""Adapters of fused projections, written for a base that splits them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lokr_core
from lokr_core.formats.convert import ConversionError, Layout, convert
from tests.parity.fused import FUSIONS, fused_base, split_base
from tests.parity.lycoris_peer import Lycoris

TRAINERS = {
    "lora": Lycoris(algorithm="locon"),
    "loha": Lycoris(algorithm="loha"),
    "lokr": Lycoris(algorithm="lokr", options={"factor": 6}),  # 72 outputs in blocks of 12
    "full difference": Lycoris(algorithm="full"),
    "dora": Lycoris(algorithm="locon", options={"weight_decompose": True}),
}


def train(trainer: Lycoris, folder: Path, *paths: str) -> Path:
    """Return the file of an adapter of these modules of the original."""
    over = Lycoris(
        algorithm=trainer.algorithm,
        dim=trainer.dim,
        options=trainer.options,
        modules={path: {} for path in paths},
    )
    return over.train(fused_base(torch.float64), folder, seed=1).path


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("fusion", ["qkv of images", "swapped halves", "one to one"])
def test_split_modules_get_rows_of_the_factors(name: str, fusion: str, tmp_path: Path) -> None:
    """What is written has the base's names, and every program can read it."""
    spec = lokr_core.attach(split_base(torch.float64)).spec
    source, out = (
        train(TRAINERS[name], tmp_path, FUSIONS[fusion].original),
        tmp_path / "o.safetensors",
    )
    convert(source, out, Layout.CANONICAL, spec=spec)
    before, after = (
        lokr_core.read_adapter(path, spec, "a").delta_weights() for path in (source, out)
    )

    assert {key.rpartition(".alpha")[0] for key in load_file(out) if "alpha" in key} <= {
        *FUSIONS[fusion].split
    }
    assert before.keys() == after.keys()
    for parameter, change in before.items():
        torch.testing.assert_close(after[parameter], change, rtol=1e-12, atol=1e-12)


def test_a_cut_through_blocks_is_refused(tmp_path: Path) -> None:
    """It is served by rows of the whole product, which no layout can write down."""
    spec = lokr_core.attach(split_base(torch.float64)).spec
    source = train(Lycoris(algorithm="lokr"), tmp_path, FUSIONS["qkv of images"].original)
    with pytest.raises(ConversionError, match="cuts through blocks"):
        convert(source, tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec)


def test_several_modules_in_one_of_the_base_are_refused(tmp_path: Path) -> None:
    """Split projections of a file on a fused base: one module would need several deltas."""
    spec = lokr_core.attach(fused_base(torch.float64)).spec
    tensors = {}
    for path in FUSIONS["qkv of images"].split:
        tensors[f"{path}.diff"] = torch.ones(24, 24)
    save_file(tensors, tmp_path / "in.safetensors")
    with pytest.raises(ConversionError, match="some of its outputs only"):
        convert(
            tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec
        )


def test_sides_of_a_convolution_lose_their_ones(tmp_path: Path) -> None:
    """OneTrainer keeps the sides of a LoHa as convolutions; the canonical layout has matrices."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    spec = lokr_core.attach(model).spec
    tensors = {f"0.hada_w{i}_a": torch.full((6, 2, 1, 1), 0.5) for i in (1, 2)}
    tensors |= {f"0.hada_w{i}_b": torch.full((2, 4, 3, 3), 0.5) for i in (1, 2)}
    save_file({**tensors, "0.alpha": torch.tensor(1.0)}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Layout.CANONICAL, spec=spec)
    shapes = {
        key: tuple(tensor.shape) for key, tensor in load_file(tmp_path / "out.safetensors").items()
    }

    assert shapes == {
        "0.alpha": (),
        **{f"0.hada_w{i}_a": (6, 2) for i in (1, 2)},
        **{f"0.hada_w{i}_b": (2, 36) for i in (1, 2)},
    }

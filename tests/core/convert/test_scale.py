"""Scales as layouts tell them: folded into a factor, or as an alpha beside a rank."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lokr_core
from lokr_core.formats.convert import Layout, convert
from lokr_core.formats.convert.scale import alpha_for, folded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_scale_is_folded_where_that_is_exact(dtype: torch.dtype) -> None:
    """A power of two always is, short of overflow; a third never."""
    factor = torch.tensor([[1.0, 0.5], [3.0, -2.0]], dtype=dtype)
    halved, tripled = folded(factor, 0.5), folded(factor, 3.0)

    assert halved is not None
    assert torch.equal(halved, factor / 2)
    assert folded(factor, 1 / 3) is None
    assert folded(torch.full((1, 1), torch.finfo(dtype).max, dtype=dtype), 2.0) is None
    if dtype is not torch.float64:  # where the product itself could round
        assert tripled is not None
        assert torch.equal(tripled, 3 * factor)


@pytest.mark.parametrize("rank", [1, 3, 7, 48])
def test_an_alpha_gives_its_scale(rank: int) -> None:
    """For every scale that came from an alpha of the same rank."""
    for alpha in (0.1, 1.0, 3.0, 1e-3, 12345.678):
        scale = alpha / rank

        assert alpha_for(scale, rank) / rank == scale


@pytest.mark.parametrize(
    ("alpha", "text"),
    [
        (6.0, "6"),
        (0.5, "0.5"),
        (2.0**53 - 1, "9007199254740991"),
        (2.0**53, "9007199254740992.0"),
        (1e18, "1e+18"),
        (-1e18, "-1e+18"),
        (1e30, "1e+30"),
    ],
)
def test_an_alpha_of_any_size_is_written_so_that_it_is_read(
    alpha: float, text: str, tmp_path: Path
) -> None:
    """As a whole number PEFT's have no point; large ones have more digits than a reader takes."""
    spec = lokr_core.attach(nn.ModuleDict({"fc": nn.Linear(4, 4, dtype=torch.float64)})).spec
    factors = {"fc.lora_up.weight": torch.ones(4, 1), "fc.lora_down.weight": torch.ones(1, 4)}
    tensors = {**factors, "fc.alpha": torch.tensor(alpha, dtype=torch.float64)}
    save_file(tensors, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out", Layout.PEFT, spec=spec)
    config = (tmp_path / "out" / "adapter_config.json").read_text()

    assert f'"lora_alpha": {text},' in config
    assert json.loads(config)["lora_alpha"] == alpha
    assert lokr_core.read_adapter(tmp_path / "out", spec).scales.tolist() == [alpha]

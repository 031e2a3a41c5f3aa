"""DoRA's magnitudes on convolutions and embeddings: the axis, and the norm along it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lokr_core.errors import AdapterTensorError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.conv_base import IN, OUT, Base, conv_base, delta_of, lokr_of
from tests.core.formats.hand_made import draw, write_peft


def test_dora_by_input_of_a_convolution_is_by_channel(tmp_path: Path) -> None:
    """One magnitude for all of a channel's kernel."""
    base = conv_base(3, 2)
    magnitude = draw(1, IN, 1, 1, seed=5).abs().double()
    factors = lokr_of(draw(4, 4, 3, 2, seed=2))
    adapted = base.weight + torch.kron(factors["lokr_w1"][:, :, None, None], factors["lokr_w2"])
    norm = adapted.square().sum(dim=(0, 2, 3), keepdim=True).sqrt()

    delta = delta_of(tmp_path, base, {**factors, "dora_scale": magnitude})

    wanted = adapted * magnitude / norm - base.weight
    torch.testing.assert_close(delta, wanted)


@pytest.mark.parametrize("shape", [(OUT, 1, 3, 2), (OUT, IN, 1, 1), (2, OUT), (1, OUT, 1, 1)])
def test_magnitude_along_no_axis_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The last is PEFT's own shape, whose key has another name."""
    tensors = {**lokr_of(draw(4, 4, 3, 2)), "dora_scale": torch.ones(shape)}

    with pytest.raises(AdapterTensorError, match="which is no magnitude"):
        delta_of(tmp_path, conv_base(3, 2), tensors)


def test_magnitude_of_peft_is_by_output_whatever_its_shape(tmp_path: Path) -> None:
    """LyCORIS means inputs by the same shape; the key tells them apart."""
    base = Base(nn.Conv2d(4, 4, 1, dtype=torch.float64))
    magnitude = draw(1, 4, 1, 1, seed=5).abs().double()
    tensors = {
        "conv.lora_A.weight": draw(2, 4, 1, 1, seed=1),
        "conv.lora_B.weight": draw(4, 2, 1, 1, seed=2),
        "conv.lora_magnitude_vector": magnitude,
    }
    folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2, use_dora=True)
    product = tensors["conv.lora_B.weight"].flatten(1) @ tensors["conv.lora_A.weight"].flatten(1)
    adapted = base.weight.flatten(1) + product
    wanted = adapted * (magnitude.flatten() / adapted.norm(dim=1))[:, None]

    delta = read_adapter(folder, discover(base)).delta_weights()["conv.weight"]

    torch.testing.assert_close(delta.flatten(1), wanted - base.weight.flatten(1))


def test_magnitude_of_an_embedding_is_by_column(tmp_path: Path) -> None:
    """PEFT takes the table transposed there, so that its outputs are our columns."""
    base = Base(nn.Embedding(OUT, IN, dtype=torch.float64))
    magnitude = draw(IN, seed=5).abs().double()
    a, b = draw(2, OUT, seed=1).double(), draw(IN, 2, seed=2).double()
    tensors = {
        "conv.lora_embedding_A": a,
        "conv.lora_embedding_B": b,
        "conv.lora_magnitude_vector": magnitude,
    }
    folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2, use_dora=True)
    adapted = base.weight + (b @ a).mT

    delta = read_adapter(folder, discover(base)).delta_weights()["conv.weight"]

    torch.testing.assert_close(delta, adapted * magnitude / adapted.norm(dim=0) - base.weight)

"""The rows of a denoiser, by which auto counts what an adapter costs."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import lokr_core
from lokr_core import AdapterMix
from lokr_serve.image.rows import mean_rows


@pytest.mark.parametrize("has_middle", [True, False])
def test_a_unet_counts_about_the_operations_that_it_computes(has_middle: bool) -> None:
    """Most parameters of a UNet see few positions; counted at the image's, all would be heavy."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn" if has_middle else None,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    base_macs = lokr_core.attach(unet).cost(AdapterMix()).base_macs
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.randn(1, 4, 16, 16), 1, torch.randn(1, 4, 32))

    rows = mean_rows(unet, 16 * 16)

    assert rows * base_macs == pytest.approx(counter.get_total_flops() / 2, rel=0.4)
    assert rows < 16 * 16 / 2


def test_a_transformer_counts_every_patch() -> None:
    """Its modules all see the whole image."""
    assert mean_rows(nn.Linear(2, 2), 64) == 64

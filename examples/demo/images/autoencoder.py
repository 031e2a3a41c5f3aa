"""An AutoencoderKL whose latents are the pixels themselves.

At 32 pixels a side there is nothing to compress, so its weights are set, not trained. Each colour
goes through as itself and as its negative, since ``silu(x) - silu(-x) = x``; beside them run two
constants, so large that the norm divides by them and not by what is in the picture; and the
residual blocks add nothing.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

NUM_COLOURS = 3
NUM_CHANNELS = 2 * NUM_COLOURS + 2
CONSTANT = 64.0
NO_VARIANCE = -30.0  # the log of it


def transparent_autoencoder(size: int) -> AutoencoderKL:
    """Return an autoencoder that gives back what it is given, within 1/1000."""
    vae = AutoencoderKL(
        block_out_channels=(NUM_CHANNELS,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=NUM_COLOURS,
        norm_num_groups=1,
        sample_size=size,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock2D):
                for parameter in module.conv2.parameters():
                    parameter.zero_()
        _make_transparent(vae.encoder)
        _make_transparent(vae.decoder)
        moments = vae.encoder.conv_out
        assert moments.bias is not None
        moments.bias[NUM_COLOURS:] = NO_VARIANCE
    return vae.eval()


def _make_transparent(half: Encoder | Decoder) -> None:
    first, norm, last = half.conv_in, half.conv_norm_out, half.conv_out
    assert first.bias is not None
    assert isinstance(norm, nn.GroupNorm)
    for parameter in (*first.parameters(), *last.parameters()):
        parameter.zero_()
    for colour in range(NUM_COLOURS):
        negative = colour + NUM_COLOURS
        first.weight[colour, colour, 1, 1] = last.weight[colour, colour, 1, 1] = 1.0
        first.weight[negative, colour, 1, 1] = last.weight[colour, negative, 1, 1] = -1.0
    first.bias[-2], first.bias[-1] = CONSTANT, -CONSTANT
    # The mean over the channels is 0, and the variance all but that of the two constants.
    norm.weight.fill_(CONSTANT * (2 / NUM_CHANNELS) ** 0.5)

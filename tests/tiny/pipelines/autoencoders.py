"""Autoencoders of tiny pipelines: two pixels to a latent, four channels."""

from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage

from tests.tiny.pipelines.weights import drawn

LATENT_CHANNELS = 4

_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 4,
}


def autoencoder(scaling_factor: float, shift_factor: float | None = None) -> AutoencoderKL:
    """Return an autoencoder; one with a shift has no convolutions around its latents."""
    has_quant_conv = shift_factor is None
    module = AutoencoderKL(
        **_BLOCKS,
        sample_size=32,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=has_quant_conv,
        use_post_quant_conv=has_quant_conv,
        force_upcast=False,
    )
    return drawn(module, 10)


def autoencoder_flux2() -> AutoencoderKLFlux2:
    """Return FLUX.2's autoencoder, which keeps statistics of its latents."""
    return drawn(AutoencoderKLFlux2(**_BLOCKS, sample_size=32), 10)


def autoencoder_qwen() -> AutoencoderKLQwenImage:
    """Return Qwen-Image's autoencoder, made for videos, of which an image is one frame."""
    module = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.2, 1.0],
    )
    return drawn(module, 10)

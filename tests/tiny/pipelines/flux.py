"""Tiny pipelines of FLUX.1."""

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.tiny.pipelines.autoencoders import LATENT_CHANNELS, autoencoder
from tests.tiny.pipelines.text_encoders import CLIP_WIDTH, T5_WIDTH, clip_text, t5_encoder
from tests.tiny.pipelines.tokenizers import clip_tokenizer, t5_tokenizer
from tests.tiny.pipelines.weights import drawn


def make_flux() -> FluxPipeline:
    """Return FLUX.1 dev, which is told its guidance."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _make(scheduler, has_guidance=True)


def make_schnell() -> FluxPipeline:
    """Return FLUX.1 schnell, which knows no guidance."""
    return _make(FlowMatchEulerDiscreteScheduler(shift=1.0), has_guidance=False)


def _make(scheduler: FlowMatchEulerDiscreteScheduler, *, has_guidance: bool) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=has_guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=scheduler,
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_text(1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(2),
        tokenizer_2=t5_tokenizer(512),
        transformer=drawn(transformer),
    )

"""Tiny pipelines whose text encoder is a language model: FLUX.2, Qwen-Image, Z-Image."""

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.tiny.pipelines.autoencoders import (
    LATENT_CHANNELS,
    autoencoder,
    autoencoder_flux2,
    autoencoder_qwen,
)
from tests.tiny.pipelines.text_encoders import CAUSAL_WIDTH, mistral3, qwen2_5_vl, qwen3
from tests.tiny.pipelines.tokenizers import mistral_tokenizer, qwen_tokenizer
from tests.tiny.pipelines.weights import drawn

NUM_READ_LAYERS = 3  # whose outputs FLUX.2 reads: 10, 20, 30 of Mistral and 9, 18, 27 of Qwen3


def make_flux2() -> Flux2Pipeline:
    """Return FLUX.2 dev, which is told its guidance."""
    return Flux2Pipeline(
        scheduler=_dynamic_scheduler(),
        vae=autoencoder_flux2(),
        text_encoder=mistral3(1, num_layers=30),
        tokenizer=mistral_tokenizer(),
        transformer=_flux2_transformer(has_guidance=True),
    )


def make_klein() -> Flux2KleinPipeline:
    """Return FLUX.2 klein, not distilled: with classifier-free guidance."""
    return Flux2KleinPipeline(
        scheduler=_dynamic_scheduler(),
        vae=autoencoder_flux2(),
        text_encoder=qwen3(1, num_layers=27),
        tokenizer=qwen_tokenizer(),
        transformer=_flux2_transformer(has_guidance=False),
        is_distilled=False,
    )


def _flux2_transformer(*, has_guidance: bool) -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=NUM_READ_LAYERS * CAUSAL_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=has_guidance,
    )
    return drawn(transformer)


def _dynamic_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def make_qwen_image() -> QwenImagePipeline:
    """Return Qwen-Image."""
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=CAUSAL_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=_dynamic_scheduler(),
        vae=autoencoder_qwen(),
        text_encoder=qwen2_5_vl(1),
        tokenizer=qwen_tokenizer(),
        transformer=drawn(transformer),
    )


def make_z_image() -> ZImagePipeline:
    """Return Z-Image."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=CAUSAL_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=qwen3(1, num_layers=2),
        tokenizer=qwen_tokenizer(),
        transformer=drawn(transformer),
    )

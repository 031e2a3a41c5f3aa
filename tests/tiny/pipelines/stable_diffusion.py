"""Tiny pipelines of Stable Diffusion 1.5, XL and 3."""

from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessorPil

from tests.tiny.pipelines.autoencoders import LATENT_CHANNELS, autoencoder
from tests.tiny.pipelines.text_encoders import (
    CLIP_WIDTH,
    T5_WIDTH,
    clip_text,
    clip_text_with_projection,
    t5_encoder,
)
from tests.tiny.pipelines.tokenizers import clip_tokenizer, t5_tokenizer
from tests.tiny.pipelines.weights import drawn

_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_UNET = {
    "sample_size": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_XL_TIME_WIDTH = 8


def make_1_5() -> StableDiffusionPipeline:
    """Return Stable Diffusion 1.5 without a safety checker."""
    return _make_1_5(None)


def make_1_5_with_checker() -> StableDiffusionPipeline:
    """Return Stable Diffusion 1.5 with a safety checker that flags every image."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    tower = {**tower, "num_attention_heads": 1}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    checker = drawn(StableDiffusionSafetyChecker(config), 5)
    checker.concept_embeds_weights.fill_(-2)  # every image is nearer to each concept than this
    checker.special_care_embeds_weights.fill_(-2)
    return _make_1_5(checker)


def _make_1_5(checker: StableDiffusionSafetyChecker | None) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        **_UNET,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CLIP_WIDTH,
        attention_head_dim=2,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.18215),
        text_encoder=clip_text(1),
        tokenizer=clip_tokenizer(),
        unet=drawn(unet),
        scheduler=PNDMScheduler.from_config(
            {**_NOISE, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
        ),
        safety_checker=checker,
        feature_extractor=_feature_extractor() if checker is not None else None,
        requires_safety_checker=checker is not None,
    )


def _feature_extractor() -> CLIPImageProcessorPil:
    size = {"height": 16, "width": 16}
    return CLIPImageProcessorPil(crop_size=size, size={"shortest_edge": 16})


def make_xl() -> StableDiffusionXLPipeline:
    """Return Stable Diffusion XL."""
    unet = UNet2DConditionModel(
        **_UNET,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * CLIP_WIDTH,
        attention_head_dim=(2, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=_XL_TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * _XL_TIME_WIDTH + CLIP_WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip_text(1),
        text_encoder_2=clip_text_with_projection(2),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=drawn(unet),
        scheduler=EulerDiscreteScheduler(**_NOISE, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def make_3() -> StableDiffusion3Pipeline:
    """Return Stable Diffusion 3."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=32,
    )
    return StableDiffusion3Pipeline(
        transformer=drawn(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_text_with_projection(1),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text_with_projection(2),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(3),
        tokenizer_3=t5_tokenizer(512),
    )

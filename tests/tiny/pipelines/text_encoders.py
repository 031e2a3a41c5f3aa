"""Text encoders of tiny pipelines, and the vocabularies of their tokenizers."""

from typing import Any

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from tests.tiny.pipelines.tokenizers import (
    BYTE_VOCAB_SIZE,
    CLIP_TOKENS,
    CLIP_VOCAB_SIZE,
    LONGEST_TEXT,
    T5_VOCAB_SIZE,
)
from tests.tiny.pipelines.weights import drawn

CLIP_WIDTH = 16
T5_WIDTH = 32  # of SD3: that of both its CLIPs together
CAUSAL_WIDTH = 16

_CAUSAL: dict[str, Any] = {
    "vocab_size": BYTE_VOCAB_SIZE,
    "hidden_size": CAUSAL_WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": LONGEST_TEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=CLIP_VOCAB_SIZE,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=CLIP_VOCAB_SIZE - 2,
        eos_token_id=CLIP_VOCAB_SIZE - 1,
        pad_token_id=CLIP_VOCAB_SIZE - 1,
    )


def clip_text(seed: int) -> CLIPTextModel:
    """Return CLIP's text model."""
    return drawn(CLIPTextModel(_clip_config()), seed)


def clip_text_with_projection(seed: int) -> CLIPTextModelWithProjection:
    """Return CLIP's text model with the projection of its pooled output."""
    return drawn(CLIPTextModelWithProjection(_clip_config()), seed)


def t5_encoder(seed: int) -> T5EncoderModel:
    """Return T5's encoder."""
    config = T5Config(
        vocab_size=T5_VOCAB_SIZE,
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return drawn(T5EncoderModel(config), seed)


def qwen3(seed: int, num_layers: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 of ``num_layers`` layers."""
    config = Qwen3Config(
        **_CAUSAL, num_hidden_layers=num_layers, head_dim=8, tie_word_embeddings=True
    )
    return drawn(Qwen3ForCausalLM(config), seed)


def qwen2_5_vl(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Return a Qwen2.5-VL, whose part that sees is as small as can be."""
    config = Qwen2_5_VLConfig(
        text_config={
            **_CAUSAL,
            "num_hidden_layers": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_heads": 1,
            "out_hidden_size": CAUSAL_WIDTH,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=True,
    )
    return drawn(Qwen2_5_VLForConditionalGeneration(config), seed)


def mistral3(seed: int, num_layers: int) -> Mistral3ForConditionalGeneration:
    """Return a Mistral3 of ``num_layers`` layers, whose part that sees is as small as can be."""
    config = Mistral3Config(
        text_config={
            "model_type": "mistral",
            **_CAUSAL,
            "num_hidden_layers": num_layers,
            "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "patch_size": 4,
            "image_size": 32,
        },
        image_token_index=7,
    )
    return drawn(Mistral3ForConditionalGeneration(config), seed)

"""CLIP's encoders: transformers wrapped them in an inner module until 5.6, and files still do."""

from lokr_core.formats.maps.rows import NameMap, rows

TEXT = NameMap(
    family="CLIP text",
    original_marks=("text_model.encoder.layers.0.self_attn.q_proj",),
    diffusers_marks=("encoder.layers.0.self_attn.q_proj", "embeddings.token_embedding"),
    rows=rows({"text_model.{rest}": "{rest}"}),
)
VISION = NameMap(
    family="CLIP vision",
    original_marks=("vision_model.encoder.layers.0.self_attn.q_proj",),
    diffusers_marks=("encoder.layers.0.self_attn.q_proj", "embeddings.patch_embedding"),
    rows=rows({"vision_model.{rest}": "{rest}"}),
)

"""Wan 2.1 and 2.2, with the image branch of their video models and the control blocks of VACE."""

from lokr_core.formats.maps.rows import NameMap, Row, rows

_BLOCK = {
    **{
        f"{original}.{name}": f"{diffusers}.{part}"
        for original, diffusers in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for name, part in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",  # the one of cross-attention; the other two have no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
}


def _blocks(name: str) -> tuple[Row, ...]:
    return rows(_BLOCK, original=f"{name}.{{n}}.", diffusers=f"{name}.{{n}}.")


WAN = NameMap(
    family="Wan",
    original_marks=("blocks.0.self_attn.q", "time_embedding.0"),
    diffusers_marks=("blocks.0.attn1.to_q", "condition_embedder.time_embedder.linear_1"),
    rows=(
        *_blocks("blocks"),
        *_blocks("vace_blocks"),
        *rows(
            {
                "time_embedding.0": "condition_embedder.time_embedder.linear_1",
                "time_embedding.2": "condition_embedder.time_embedder.linear_2",
                "time_projection.1": "condition_embedder.time_proj",
                "text_embedding.0": "condition_embedder.text_embedder.linear_1",
                "text_embedding.2": "condition_embedder.text_embedder.linear_2",
                "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
                "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
                "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
                "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
                "head.head": "proj_out",
            }
        ),
    ),
)

"""FLUX.1, FLUX.2 and Chroma: the names of Black Forest Labs."""

from lokr_core.formats.maps.rows import NameMap, Row, Shares, rows

_ATTENTION = rows(
    {
        "img_attn.qkv": "to_q to_k to_v",
        "img_attn.proj": "to_out.0",
        "img_attn.norm.query_norm": "norm_q",
        "img_attn.norm.key_norm": "norm_k",
        "txt_attn.qkv": "add_q_proj add_k_proj add_v_proj",
        "txt_attn.proj": "to_add_out",
        "txt_attn.norm.query_norm": "norm_added_q",
        "txt_attn.norm.key_norm": "norm_added_k",
    },
    original="double_blocks.{n}.",
    diffusers="transformer_blocks.{n}.attn.",
)
_MLP = rows(
    {
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
    },
    original="double_blocks.{n}.",
    diffusers="transformer_blocks.{n}.",
)
_SINGLE_NORMS = rows(
    {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"},
    original="single_blocks.{n}.",
    diffusers="single_transformer_blocks.{n}.",
)
_SINGLE = (
    Row(
        original="single_blocks.{n}.linear1",
        diffusers=(
            "single_transformer_blocks.{n}.attn.to_q",
            "single_transformer_blocks.{n}.attn.to_k",
            "single_transformer_blocks.{n}.attn.to_v",
            "single_transformer_blocks.{n}.proj_mlp",
        ),
        shares=Shares.SQUARE,
    ),
    *rows({"single_blocks.{n}.linear2": "single_transformer_blocks.{n}.proj_out"}),
    *_SINGLE_NORMS,
)
_ENDS = rows(
    {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
)
_LAST_MODULATION = Row(
    original="final_layer.adaLN_modulation.1", diffusers=("norm_out.linear",), is_swapped=True
)

FLUX1 = NameMap(
    family="FLUX.1",
    original_marks=("double_blocks.0.img_attn.qkv", "vector_in.in_layer"),
    diffusers_marks=("x_embedder", "time_text_embed.text_embedder.linear_1"),
    rows=(
        *_ATTENTION,
        *_MLP,
        *_SINGLE,
        *_ENDS,
        _LAST_MODULATION,
        *rows(
            {
                "double_blocks.{n}.img_mod.lin": "transformer_blocks.{n}.norm1.linear",
                "double_blocks.{n}.txt_mod.lin": "transformer_blocks.{n}.norm1_context.linear",
                "single_blocks.{n}.modulation.lin": "single_transformer_blocks.{n}.norm.linear",
                "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
                "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
                "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
                "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
                "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
                "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
            }
        ),
    ),
)

FLUX2 = NameMap(
    family="FLUX.2",
    original_marks=("double_blocks.0.img_attn.qkv", "double_stream_modulation_img.lin"),
    diffusers_marks=("x_embedder", "double_stream_modulation_img.linear"),
    rows=(
        *_ATTENTION,
        *_SINGLE_NORMS,
        *_ENDS,
        _LAST_MODULATION,
        *rows(
            {
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
            original="double_blocks.{n}.",
            diffusers="transformer_blocks.{n}.",
        ),
        *rows(
            {
                "single_blocks.{n}.linear1": "single_transformer_blocks.{n}.attn.to_qkv_mlp_proj",
                "single_blocks.{n}.linear2": "single_transformer_blocks.{n}.attn.to_out",
                "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
                "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
                "single_stream_modulation.lin": "single_stream_modulation.linear",
                "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
                "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
                "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
                "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
                "sformer_blocks.{n}.{rest}": "transformer_blocks.{n}.{rest}",  # of some exports
            }
        ),
    ),
)

CHROMA = NameMap(
    family="Chroma",
    original_marks=("distilled_guidance_layer.in_proj", "img_in"),
    diffusers_marks=("distilled_guidance_layer.in_proj", "x_embedder"),
    rows=(
        *_ATTENTION,
        *_MLP,
        *_SINGLE,
        *_ENDS,
        *rows(
            {"in_layer": "linear_1", "out_layer": "linear_2"},
            original="distilled_guidance_layer.layers.{n}.",
            diffusers="distilled_guidance_layer.layers.{n}.",
        ),
    ),
)

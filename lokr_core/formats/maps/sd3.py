"""Stable Diffusion 3: the names of its MMDiT."""

from lokr_core.formats.maps.rows import NameMap, NamePair, Row, rows

# The last block has no output for the text, and there its modulation is shift and scale alone.
_TEXT_OUTPUT = NamePair(
    original="joint_blocks.{n}.context_block.attn.proj",
    diffusers="transformer_blocks.{n}.attn.to_add_out",
)
_TEXT_MODULATION = NamePair(
    original="joint_blocks.{n}.context_block.adaLN_modulation.1",
    diffusers="transformer_blocks.{n}.norm1_context.linear",
)

SD3 = NameMap(
    family="SD3",
    original_marks=("joint_blocks.0.x_block.attn.qkv",),
    diffusers_marks=("pos_embed.proj", "transformer_blocks.0.norm1_context.linear"),
    rows=(
        *rows(
            {
                "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v",
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn.ln_q": "attn.norm_q",
                "x_block.attn.ln_k": "attn.norm_k",
                "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
                "x_block.attn2.proj": "attn2.to_out.0",
                "x_block.attn2.ln_q": "attn2.norm_q",
                "x_block.attn2.ln_k": "attn2.norm_k",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "x_block.adaLN_modulation.1": "norm1.linear",
                "context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
                "context_block.attn.proj": "attn.to_add_out",
                "context_block.attn.ln_q": "attn.norm_added_q",
                "context_block.attn.ln_k": "attn.norm_added_k",
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
            },
            original="joint_blocks.{n}.",
            diffusers="transformer_blocks.{n}.",
        ),
        Row(
            original=_TEXT_MODULATION.original,
            diffusers=(_TEXT_MODULATION.diffusers,),
            when=_TEXT_OUTPUT,
        ),
        Row(
            original=_TEXT_MODULATION.original,
            diffusers=(_TEXT_MODULATION.diffusers,),
            is_swapped=True,
            unless=_TEXT_OUTPUT,
        ),
        Row(
            original="final_layer.adaLN_modulation.1",
            diffusers=("norm_out.linear",),
            is_swapped=True,
        ),
        *rows(
            {
                "x_embedder.proj": "pos_embed.proj",
                "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
                "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
                "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
                "final_layer.linear": "proj_out",
            }
        ),
    ),
)

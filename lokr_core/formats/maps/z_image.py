"""Z-Image: its names are diffusers' but for the attention and the two ends of earlier files."""

from lokr_core.formats.maps.rows import NameMap, Row, rows


def _blocks(name: str) -> tuple[Row, ...]:
    return rows(
        {
            "qkv": "to_q to_k to_v",
            "out": "to_out.0",
            "q_norm": "norm_q",
            "k_norm": "norm_k",
        },
        original=f"{name}.{{n}}.attention.",
        diffusers=f"{name}.{{n}}.attention.",
    )


Z_IMAGE = NameMap(
    family="Z-Image",
    original_marks=("cap_embedder.1", "noise_refiner.0.attention.qkv"),
    diffusers_marks=("cap_embedder.1", "noise_refiner.0.attention.to_q"),
    rows=(
        *_blocks("layers"),
        *_blocks("noise_refiner"),
        *_blocks("context_refiner"),
        *rows(
            {
                # diffusers keeps one of each for every patch size; the models have one, 2-1
                "x_embedder": "all_x_embedder.2-1",
                "final_layer.{rest}": "all_final_layer.2-1.{rest}",
            }
        ),
    ),
)

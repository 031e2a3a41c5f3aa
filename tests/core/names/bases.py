"""Real models of every family, without memory: their names and sizes are what matters here."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec

Maker = Callable[[], object]  # diffusers does not tell that its models are modules
Converter = Callable[[dict[str, Tensor]], dict[str, Tensor]]

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 4}
# diffusers' converters know the width of FLUX.1 by heart.
_WIDE = {"num_attention_heads": 24, "attention_head_dim": 128}
_UNET = {"norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6}


def sd3() -> object:
    """Return an SD3.5: a block with two attentions, and a last one without text output."""
    return SD3Transformer2DModel(
        **_HEADS,
        num_layers=2,
        sample_size=4,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        caption_projection_dim=8,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        in_channels=4,
        out_channels=4,
        pos_embed_max_size=4,
    )


def flux1() -> object:
    """Return a FLUX.1 with guidance."""
    return FluxTransformer2DModel(
        **_WIDE,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        in_channels=4,
        guidance_embeds=True,
    )


def flux2() -> object:
    """Return a FLUX.2."""
    return Flux2Transformer2DModel(
        **_HEADS, num_layers=2, num_single_layers=2, joint_attention_dim=6, in_channels=4
    )


def chroma() -> object:
    """Return a Chroma."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
        return ChromaTransformer2DModel(
            **_WIDE,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=6,
            in_channels=4,
            approximator_num_channels=4,
            approximator_hidden_dim=6,
            approximator_layers=2,
        )


def qwen_image() -> object:
    """Return a Qwen-Image."""
    return QwenImageTransformer2DModel(
        **_HEADS, num_layers=2, joint_attention_dim=6, in_channels=4, axes_dims_rope=(2, 2, 0)
    )


def z_image() -> object:
    """Return a Z-Image."""
    return ZImageTransformer2DModel(
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=6,
        in_channels=4,
        axes_dims=[2, 2, 4],
        axes_lens=[4, 4, 4],
    )


def wan() -> object:
    """Return a Wan 2.1 that makes videos of images."""
    return WanTransformer3DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=6,
        freq_dim=8,
        ffn_dim=10,
        image_dim=6,
        added_kv_proj_dim=24,
    )


def sd15() -> object:
    """Return a UNet with the stages of SD 1.5."""
    return UNet2DConditionModel(**_UNET, block_out_channels=(4, 8, 8, 8))


SDXL_CONFIG = {
    "layers_per_block": 2,
    "addition_embed_type": "text_time",
    "block_out_channels": (4, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "projection_class_embeddings_input_dim": 12,
    "addition_time_embed_dim": 2,
}


def sdxl() -> object:
    """Return a UNet with the stages of SDXL."""
    return UNet2DConditionModel(**_UNET, **SDXL_CONFIG)


def clip(width: int = 8) -> CLIPTextModel:
    """Return CLIP's text encoder, which has no inner ``text_model`` in transformers of today."""
    return CLIPTextModel(_clip_config(width))


def clip_with_projection() -> CLIPTextModelWithProjection:
    """Return CLIP's text encoder with a projection, which has an inner ``text_model``."""
    return CLIPTextModelWithProjection(_clip_config(12))


def _clip_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=16,
        max_position_embeddings=8,
        projection_dim=6,
    )


def t5() -> T5EncoderModel:
    """Return T5's encoder."""
    return T5EncoderModel(
        T5Config(
            d_model=8,
            d_kv=4,
            d_ff=10,
            num_layers=2,
            num_heads=2,
            vocab_size=16,
            feed_forward_proj="gated-gelu",
        )
    )


def tree(sizes: Iterable[tuple[str, int, int]]) -> nn.Module:
    """Return a model of linear modules, given as path, inputs and outputs."""
    root = nn.Module()
    for path, inputs, outputs in sizes:
        *parents, name = path.split(".")
        parent = root
        for step in parents:
            if step not in dict(parent.named_children()):
                parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(name, nn.Linear(inputs, outputs))
    return root


@cache
def spec_of(make: Maker) -> ModelSpec:
    """Return the spec of a model that is made without memory."""
    with torch.device("meta"):
        return discover(make())


def pipeline_spec(**makers: Maker) -> ModelSpec:
    """Return the spec of components by name, made without memory."""
    with torch.device("meta"):
        return discover({name: make() for name, make in makers.items()})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """A family with the program of diffusers that converts its original weights."""

    make: Maker
    convert: Converter
    norm_weight: str = "weight"  # what the original calls the weight of an RMS norm
    extra: Callable[[], dict[str, Tensor]] = dict  # parameters that belong to no module


def _sd3_extra() -> dict[str, Tensor]:
    return {"pos_embed": torch.zeros(1, 4, 8)}


def _unet_converter(config: Mapping[str, object]) -> Converter:
    def convert(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
        prefixed = {f"model.diffusion_model.{key}": value for key, value in checkpoint.items()}
        converted: dict[str, Tensor] = single_file_utils.convert_ldm_unet_checkpoint(
            prefixed, config
        )
        return converted

    return convert


FAMILIES: Mapping[str, Family] = {
    "sd15": Family(make=sd15, convert=_unet_converter({"layers_per_block": 2})),
    "sdxl": Family(make=sdxl, convert=_unet_converter(SDXL_CONFIG)),
    "sd3": Family(
        make=sd3,
        convert=single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
        extra=_sd3_extra,
    ),
    "flux1": Family(
        make=flux1,
        convert=single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
        norm_weight="scale",
    ),
    "flux2": Family(
        make=flux2,
        convert=single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
        norm_weight="scale",
    ),
    "chroma": Family(
        make=chroma,
        convert=single_file_utils.convert_chroma_transformer_checkpoint_to_diffusers,
        norm_weight="scale",
    ),
    "z_image": Family(
        make=z_image,
        convert=single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    ),
    "wan": Family(make=wan, convert=single_file_utils.convert_wan_transformer_to_diffusers),
}

"""Families: the kinds of pipelines that are served, and how each is called."""

from dataclasses import dataclass
from enum import Enum
from typing import cast

import diffusers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from lokr_serve.errors import ModelError
from lokr_serve.image.calls import CallSignature
from lokr_serve.image.tokenizers import PromptForm, PromptReader


class Guidance(Enum):
    """What a pipeline's ``guidance_scale`` does."""

    CLASSIFIER_FREE = "classifier-free"  # the denoiser runs twice, without the prompt too
    EMBEDDED = "embedded"  # the denoiser is told it, where it was distilled to know it


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of pipelines: the same components, called the same way."""

    name: str
    text_to_image: str  # a class of diffusers
    image_to_image: str  # likewise; the same where one class does both
    denoiser: str  # component
    signature: CallSignature  # of the denoiser
    text_encoders: tuple[PromptReader, ...]
    guidance: Guidance
    guided_above: float = 1.0  # classifier-free guidance is off up to this scale
    is_guided_in_one_call: bool  # of twice the rows; else of two calls
    has_negative_prompt: bool = True
    has_true_cfg: bool = False  # classifier-free guidance by a scale of its own
    has_strength: bool = True  # or an init image is only looked at, and all steps are run
    patch: int  # latents to a side of what the denoiser sees as one
    least_multiple: int = 1  # of pixels, whatever the autoencoder needs
    default_side: int | None = None  # pixels, where the pipeline's components do not tell
    may_lack: frozenset[str] = frozenset()  # components that its constructor must be given
    upcasts_vae: bool = False  # where its configuration says so, and it is in float16


_UNET = CallSignature(
    counted_by="sample",
    rows=frozenset({"sample", "encoder_hidden_states", "timestep_cond", "added_cond_kwargs"}),
    expanded=frozenset({"timestep"}),
)
_SD3 = CallSignature(
    counted_by="hidden_states",
    rows=frozenset({"hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"}),
)
# The places of tokens, img_ids and txt_ids, are shared: the transformer reads one row's alone.
_FLUX = CallSignature(
    counted_by="hidden_states",
    rows=frozenset(
        {"hidden_states", "timestep", "guidance", "encoder_hidden_states", "pooled_projections"}
    ),
)
_FLUX2 = CallSignature(
    counted_by="hidden_states",
    rows=frozenset({"hidden_states", "timestep", "guidance", "encoder_hidden_states"}),
    repeated=frozenset({"img_ids", "txt_ids"}),  # of which the transformer reads one row's alone
)
# img_shapes are shared too, of which there is one for each prompt, not for each row.
_QWEN = CallSignature(
    counted_by="hidden_states",
    rows=frozenset(
        {
            "hidden_states",
            "timestep",
            "guidance",
            "encoder_hidden_states",
            "encoder_hidden_states_mask",
        }
    ),
    masked={"encoder_hidden_states": "encoder_hidden_states_mask"},
)
_Z_IMAGE_CAPTION_MULTIPLE = 32  # tokens, that captions are padded to
_Z_IMAGE = CallSignature(
    counted_by="x",
    rows=frozenset({"t"}),
    lists=frozenset({"x", "cap_feats"}),
    padded_lists={"cap_feats": _Z_IMAGE_CAPTION_MULTIPLE},
)

_CLIP = PromptReader(component="text_encoder", tokenizer="tokenizer")
_CLIP_2 = PromptReader(component="text_encoder_2", tokenizer="tokenizer_2")

FAMILIES = (
    Family(
        name="stable-diffusion",
        text_to_image="StableDiffusionPipeline",
        image_to_image="StableDiffusionImg2ImgPipeline",
        denoiser="unet",
        signature=_UNET,
        text_encoders=(_CLIP,),
        guidance=Guidance.CLASSIFIER_FREE,
        is_guided_in_one_call=True,
        patch=1,
        least_multiple=8,
        may_lack=frozenset({"safety_checker", "feature_extractor"}),
    ),
    Family(
        name="stable-diffusion-xl",
        text_to_image="StableDiffusionXLPipeline",
        image_to_image="StableDiffusionXLImg2ImgPipeline",
        denoiser="unet",
        signature=_UNET,
        text_encoders=(_CLIP, _CLIP_2),
        guidance=Guidance.CLASSIFIER_FREE,
        is_guided_in_one_call=True,
        patch=1,
        least_multiple=8,
        upcasts_vae=True,
    ),
    Family(
        name="stable-diffusion-3",
        text_to_image="StableDiffusion3Pipeline",
        image_to_image="StableDiffusion3Img2ImgPipeline",
        denoiser="transformer",
        signature=_SD3,
        text_encoders=(
            _CLIP,
            _CLIP_2,
            PromptReader(component="text_encoder_3", tokenizer="tokenizer_3", max_tokens=256),
        ),
        guidance=Guidance.CLASSIFIER_FREE,
        is_guided_in_one_call=True,
        patch=2,
        may_lack=frozenset({"text_encoder_3", "tokenizer_3"}),
    ),
    Family(
        name="flux",
        text_to_image="FluxPipeline",
        image_to_image="FluxImg2ImgPipeline",
        denoiser="transformer",
        signature=_FLUX,
        text_encoders=(
            _CLIP,
            PromptReader(component="text_encoder_2", tokenizer="tokenizer_2", max_tokens=512),
        ),
        guidance=Guidance.EMBEDDED,
        is_guided_in_one_call=False,
        has_true_cfg=True,
        patch=2,
    ),
    Family(
        name="flux2",
        text_to_image="Flux2Pipeline",
        image_to_image="Flux2Pipeline",
        denoiser="transformer",
        signature=_FLUX2,
        text_encoders=(
            PromptReader(
                component="text_encoder",
                tokenizer="tokenizer",
                form=PromptForm.SYSTEM_CHAT,
                max_tokens=512,
            ),
        ),
        guidance=Guidance.EMBEDDED,
        is_guided_in_one_call=False,
        has_negative_prompt=False,
        has_strength=False,
        patch=2,
    ),
    Family(
        name="flux2-klein",
        text_to_image="Flux2KleinPipeline",
        image_to_image="Flux2KleinPipeline",
        denoiser="transformer",
        signature=_FLUX2,
        text_encoders=(
            PromptReader(
                component="text_encoder",
                tokenizer="tokenizer",
                form=PromptForm.CHAT,
                max_tokens=512,
            ),
        ),
        guidance=Guidance.CLASSIFIER_FREE,
        is_guided_in_one_call=False,
        has_negative_prompt=False,
        has_strength=False,
        patch=2,
    ),
    Family(
        name="qwen-image",
        text_to_image="QwenImagePipeline",
        image_to_image="QwenImageImg2ImgPipeline",
        denoiser="transformer",
        signature=_QWEN,
        text_encoders=(
            PromptReader(
                component="text_encoder",
                tokenizer="tokenizer",
                form=PromptForm.TEMPLATE,
                max_tokens=512,
            ),
        ),
        guidance=Guidance.EMBEDDED,
        is_guided_in_one_call=False,
        has_true_cfg=True,
        patch=2,
    ),
    Family(
        name="z-image",
        text_to_image="ZImagePipeline",
        image_to_image="ZImageImg2ImgPipeline",
        denoiser="transformer",
        signature=_Z_IMAGE,
        text_encoders=(
            PromptReader(
                component="text_encoder",
                tokenizer="tokenizer",
                form=PromptForm.THINKING_CHAT,
                max_tokens=512,
            ),
        ),
        guidance=Guidance.CLASSIFIER_FREE,
        guided_above=0.0,
        is_guided_in_one_call=True,
        patch=2,
        default_side=1024,
    ),
)

# Words in the names of classes, and what they say of why a class is not served.
_REFUSED = {
    "ControlNet": "takes an image that controls another",
    "Control": "takes an image that controls another",
    "Adapter": "takes an image that controls another",
    "Inpaint": "paints into an image",
    "Fill": "paints into an image",
    "Kontext": "edits an image",
    "Edit": "edits an image",
    "Pix2Pix": "edits an image",
    "Layered": "takes an image apart",
    "Upscale": "enlarges an image",
    "Video": "makes videos",
    "AnimateDiff": "makes videos",
    "Wan": "makes videos",
    "LTX": "makes videos",
    "Mochi": "makes videos",
    "CogVideo": "makes videos",
    "Audio": "makes sound",
    "KleinKV": "keeps a cache between its steps",
    "PAG": "changes the attention of a denoiser that requests share",
}


def family_of(class_name: str) -> Family:
    """Return the family that a pipeline class belongs to.

    Raises:
        ModelError: It belongs to none that is served.
    """
    for family in FAMILIES:
        if class_name in (family.text_to_image, family.image_to_image):
            return family
    reasons = (reason for word, reason in _REFUSED.items() if word in class_name)
    reason = next(reasons, None)
    served = ", ".join(sorted({family.text_to_image for family in FAMILIES}))
    raise ModelError(
        f"pipeline {class_name!r} {f'{reason}, which ' if reason else ''}is not served; "
        f"served are {served}, and their image-to-image forms"
    )


def pipeline_class(class_name: str) -> type[DiffusionPipeline]:
    """Return a class of a family by its name."""
    return cast(type[DiffusionPipeline], getattr(diffusers, class_name))

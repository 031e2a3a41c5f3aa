"""Families: what is served, what is refused by name, and that their data is true of diffusers."""

import inspect

import diffusers
import pytest

from lokr_serve.errors import ModelError
from lokr_serve.image.families import FAMILIES, Family, Guidance, family_of, pipeline_class
from tests.tiny.pipelines import PIPELINE_NAMES, make_pipeline


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_a_family_says_is_true_of_its_classes(family: Family) -> None:
    """A version of diffusers that calls something otherwise must not go unseen."""
    from_text = inspect.signature(pipeline_class(family.text_to_image).__call__).parameters
    from_image = inspect.signature(pipeline_class(family.image_to_image).__call__).parameters

    assert ("negative_prompt" in from_text) == family.has_negative_prompt
    assert ("true_cfg_scale" in from_text) == family.has_true_cfg
    assert ("strength" in from_image) == family.has_strength
    assert "image" in from_image
    assert {"guidance_scale", "num_inference_steps", "generator"} <= set(from_text)


@pytest.mark.parametrize("name", PIPELINE_NAMES)
def test_signatures_name_arguments_of_the_denoiser(name: str) -> None:
    """An argument that is misnamed would be shared by requests, and they would never join."""
    pipeline = make_pipeline(name)
    family = family_of(type(pipeline).__name__)
    signature = family.signature

    known = set(inspect.signature(pipeline.components[family.denoiser].forward).parameters)

    assert signature.rows | signature.lists | signature.expanded <= known
    assert signature.counted_by in signature.rows | signature.lists
    for encoder in family.text_encoders:
        assert {encoder.component, encoder.tokenizer} <= set(pipeline.components)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_both_classes_of_a_family_are_served(family: Family) -> None:
    """A folder may have been saved from either."""
    assert family_of(family.text_to_image) is family
    assert family_of(family.image_to_image) is family


REFUSED = {
    "FluxControlNetPipeline": "controls another",
    "FluxControlPipeline": "controls another",
    "StableDiffusionXLInpaintPipeline": "paints into an image",
    "Flux2KleinInpaintPipeline": "paints into an image",
    "FluxFillPipeline": "paints into an image",
    "FluxKontextPipeline": "edits an image",
    "QwenImageEditPlusPipeline": "edits an image",
    "StableDiffusionInstructPix2PixPipeline": "edits an image",
    "WanPipeline": "makes videos",
    "HunyuanVideoPipeline": "makes videos",
    "StableVideoDiffusionPipeline": "makes videos",
    "Flux2KleinKVPipeline": "keeps a cache",
    "StableDiffusionPAGPipeline": "attention",
    "QwenImage21Pipeline": "is not served",
    "SanaPipeline": "is not served",
    "NoSuchPipeline": "is not served",
}


@pytest.mark.parametrize("class_name", REFUSED)
def test_what_is_not_served_is_refused_by_name(class_name: str) -> None:
    """Whoever started the server with another model learns why it does not start."""
    with pytest.raises(ModelError) as raised:
        family_of(class_name)

    message = str(raised.value)
    assert class_name in message
    assert REFUSED[class_name] in message
    assert "FluxPipeline" in message
    assert "ZImagePipeline" in message


def test_guidance_is_named_for_each_family() -> None:
    """Both kinds are in use, and the embedded one is told to the denoiser."""
    embedded = {family.name for family in FAMILIES if family.guidance is Guidance.EMBEDDED}

    assert embedded == {"flux", "flux2", "qwen-image"}
    for family in FAMILIES:
        has_argument = "guidance" in family.signature.rows
        assert has_argument == (family.name in embedded or family.name == "flux2-klein")


def test_every_class_is_one_of_diffusers() -> None:
    """The names are looked up when a pipeline is built."""
    names = {name for family in FAMILIES for name in (family.text_to_image, family.image_to_image)}

    assert all(issubclass(pipeline_class(name), diffusers.DiffusionPipeline) for name in names)

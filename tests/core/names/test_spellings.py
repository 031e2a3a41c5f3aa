"""Spellings: one module under the names of every trainer, alone and in a pipeline."""

from collections.abc import Iterator

import pytest

from lokr_core.formats.binding import FileModule
from lokr_core.formats.names import ModuleNames
from tests.core.names.bases import (
    FAMILIES,
    Maker,
    clip,
    clip_with_projection,
    pipeline_spec,
    qwen_image,
    sd15,
    sdxl,
    spec_of,
    t5,
)
from tests.core.names.rows import found, is_bound, original_names, paths
from tests.tiny.models import tiny_gpt2, tiny_llama

MAKERS: dict[str, Maker] = {
    **{name: family.make for name, family in FAMILIES.items()},
    "qwen_image": qwen_image,
}
DOTTED = ["", "diffusion_model.", "model.diffusion_model.", "transformer.", "unet."]
FLAT = ["lycoris_", "lora_unet_", "lora_unet__", "lora_transformer_"]
WRAPPERS = ["", "base_model.model."]


def spellings(name: str) -> Iterator[str]:
    """Yield all ways to write a module's name."""
    for wrapper in WRAPPERS:
        yield from (f"{wrapper}{prefix}{name}" for prefix in DOTTED)
        yield from (f"{wrapper}{prefix}{name.replace('.', '_')}" for prefix in FLAT)


def outputs(module: FileModule) -> list[tuple[str, object, object]]:
    """Return what can be compared of a module's targets."""
    return [(target.spec.path, target.rows, target.at) for target in module.targets]


@pytest.mark.parametrize("family", MAKERS)
def test_all_spellings_of_a_name_mean_the_same(family: str) -> None:
    """Trainers agree on modules and on little else; a spelling that is missed is a skipped key."""
    spec = spec_of(MAKERS[family])
    names = ModuleNames(spec)

    for name in {*original_names(spec), *spec.modules}:
        expected = outputs(found(names, name))
        for spelled in spellings(name):
            assert outputs(found(names, spelled)) == expected, spelled


@pytest.mark.parametrize("family", MAKERS)
def test_own_paths_mean_themselves(family: str) -> None:
    """No map may take a name of the base away from the base."""
    spec = spec_of(MAKERS[family])
    names = ModuleNames(spec)

    for path in spec.modules:
        assert outputs(found(names, path)) == [(path, None, None)]


@pytest.mark.parametrize("family", MAKERS)
def test_denoiser_is_found_beside_other_components(family: str) -> None:
    """In a pipeline every spelling of the denoiser's modules still means the denoiser's."""
    component = "unet" if family in ("sd15", "sdxl") else "transformer"
    spec = spec_of(MAKERS[family])
    alone = ModuleNames(spec)
    names = ModuleNames(pipeline_spec(**{component: MAKERS[family], "text_encoder": clip}))

    for name in original_names(spec):
        expected = [f"{component}.{path}" for path in paths(found(alone, name))]
        for spelled in spellings(name):
            assert paths(found(names, spelled)) == expected, spelled


Q = "encoder.layers.1.self_attn.q_proj"
T5_Q = "encoder.block.1.layer.0.SelfAttention.q"


@pytest.mark.parametrize("inner", ["", "text_model."])
def test_clip_is_found_with_and_without_its_inner_model(inner: str) -> None:
    """Transformers dropped ``text_model`` in 5.6; the files of years say it."""
    flat = f"{inner}{Q}".replace(".", "_")

    for make, path in ((clip, Q), (clip_with_projection, f"text_model.{Q}")):
        names = ModuleNames(spec_of(make))
        assert paths(found(names, f"lora_te_{flat}")) == [path]
        assert paths(found(names, f"{inner}{Q}")) == [path]


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("lora_te_text_model_encoder_layers_1_self_attn_q_proj", "text_encoder"),
        ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_1_self_attn_q_proj", "text_encoder_2"),
        (f"text_encoder.text_model.{Q}", "text_encoder"),
        (f"text_encoder.{Q}", "text_encoder"),
        (f"text_encoder_2.{Q}", "text_encoder_2"),
        (f"text_encoders.clip_l.transformer.text_model.{Q}", "text_encoder"),
        (f"text_encoders.clip_g.transformer.text_model.{Q}", "text_encoder_2"),
    ],
)
def test_text_encoders_are_told_apart(name: str, component: str) -> None:
    """Two CLIPs have the same modules: the prefix alone tells which one was trained."""
    names = ModuleNames(
        pipeline_spec(unet=sdxl, text_encoder=clip, text_encoder_2=clip_with_projection)
    )

    (path,) = paths(found(names, name))
    assert path.startswith(f"{component}.")
    assert path.endswith(Q)


@pytest.mark.parametrize(
    "name",
    [
        "lora_te3_encoder_block_1_layer_0_SelfAttention_q",
        "lora_te2_encoder_block_1_layer_0_SelfAttention_q",
        f"text_encoders.t5xxl.transformer.{T5_Q}",
        f"base_model.model.{T5_Q}",
        "lycoris_encoder_block_1_layer_0_SelfAttention_q",
    ],
)
def test_t5_of_flux_is_found_as_second_and_as_third(name: str) -> None:
    """Kohya's scripts number FLUX.1's T5 as SD3's, which is the third."""
    names = ModuleNames(pipeline_spec(text_encoder=clip, text_encoder_2=t5))

    assert paths(found(names, name)) == [f"text_encoder_2.{T5_Q}"]


def test_third_text_encoder_keeps_its_number() -> None:
    """Where there is a third encoder, te3 is never the second."""
    names = ModuleNames(
        pipeline_spec(text_encoder=clip, text_encoder_2=clip_with_projection, text_encoder_3=t5)
    )

    found_t5 = found(names, "lora_te3_encoder_block_1_layer_0_SelfAttention_q")

    assert paths(found_t5) == [f"text_encoder_3.{T5_Q}"]
    assert not is_bound(names, f"lora_te3_{Q.replace('.', '_')}")


def test_prefixes_of_stable_cascade_mean_its_prior() -> None:
    """The prior is the denoiser that people train; its pipelines name it in two ways."""
    alone = ModuleNames(pipeline_spec(prior=sd15, text_encoder=clip))
    combined = ModuleNames(pipeline_spec(prior_prior=sd15, prior_text_encoder=clip, decoder=sd15))
    flat = f"lora_prior_te_{Q.replace('.', '_')}"

    assert paths(found(alone, "lora_prior_unet_conv_in")) == ["prior.conv_in"]
    assert paths(found(combined, "lora_prior_unet_conv_in")) == ["prior_prior.conv_in"]
    assert paths(found(alone, flat)) == [f"text_encoder.{Q}"]
    assert paths(found(combined, flat)) == [f"prior_text_encoder.{Q}"]


@pytest.mark.parametrize("path", ["layers.1.self_attn.q_proj", "embed_tokens"])
def test_language_model_as_text_encoder_is_found(path: str) -> None:
    """ComfyUI's names of such encoders hold the inner model, which the base may be itself."""
    name = f"text_encoders.qwen3_06b.transformer.model.{path}"
    inner = ModuleNames(pipeline_spec(text_encoder=lambda: tiny_llama().model))
    outer = ModuleNames(pipeline_spec(text_encoder=tiny_llama))

    assert paths(found(inner, name)) == [f"text_encoder.{path}"]
    assert paths(found(outer, name)) == [f"text_encoder.model.{path}"]


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.1.attn.c_attn",
        "base_model.model.transformer.h.1.attn.c_attn",
        "lycoris_transformer_h_1_attn_c_attn",
    ],
)
def test_model_with_a_transformer_of_its_own_is_no_pipeline(name: str) -> None:
    """GPT-2 calls its stack ``transformer``, as pipelines call a component."""
    names = ModuleNames(spec_of(tiny_gpt2))

    assert paths(found(names, name)) == ["transformer.h.1.attn.c_attn"]


def test_whole_key_rename_of_ai_toolkit_is_undone() -> None:
    """ai-toolkit replaces ``transformer.`` wherever it stands, in the midst of a path too."""
    names = ModuleNames(pipeline_spec(transformer=tiny_gpt2))

    module = found(names, "diffusion_model.diffusion_model.h.0.mlp.c_fc")

    assert paths(module) == ["transformer.transformer.h.0.mlp.c_fc"]


@pytest.mark.parametrize("name", ["student.conv_in", "conv_in", "lora_unet_conv_in"])
def test_components_of_other_names_are_searched_too(name: str) -> None:
    """Callers may attach modules under names of their own."""
    names = ModuleNames(pipeline_spec(student=sd15))

    assert paths(found(names, name)) == ["student.conv_in"]


def test_component_may_be_one_module() -> None:
    """A head alone is a component without paths."""
    names = ModuleNames(pipeline_spec(unet=sd15, head=head))

    assert paths(found(names, "head")) == ["head"]


def head() -> object:
    """Return a linear module."""
    return tiny_llama().lm_head


def test_adapter_of_one_encoder_is_no_adapter_of_another() -> None:
    """The second encoder's prefix must not reach the first, which has the same modules."""
    names = ModuleNames(pipeline_spec(unet=sd15, text_encoder=clip))

    assert not is_bound(names, f"text_encoder_2.{Q}")
    assert not is_bound(names, f"lora_te2_{Q.replace('.', '_')}")

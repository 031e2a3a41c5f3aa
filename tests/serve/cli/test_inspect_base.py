"""Base models that adapters are held against: of transformers, of diffusers, and pipelines."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lokr_serve.cli.command import Dtype
from lokr_serve.cli.inspect_base import load_weights, read_modules
from lokr_serve.errors import ModelError, SettingsError


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of a tiny pipeline, and a part that is none."""
    folder = tmp_path_factory.mktemp("pipeline")
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    unet.to(torch.bfloat16).save_pretrained(folder / "unet")
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=100,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_models_of_a_pipeline_are_read_by_name(pipeline_folder: Path) -> None:
    """Paths in a pipeline start with the component's name."""
    light = read_modules(pipeline_folder, Dtype.AUTO)
    whole = load_weights(pipeline_folder, Dtype.AUTO)

    assert isinstance(light, dict)
    assert isinstance(whole, dict)
    assert list(light) == list(whole) == ["unet", "text_encoder"]
    for name, part in light.items():
        expected = {key: (p.shape, p.dtype) for key, p in whole[name].named_parameters()}
        assert {key: (p.shape, p.dtype) for key, p in part.named_parameters()} == expected
        assert all(p.untyped_storage().nbytes() <= 4 for p in part.parameters())


def test_a_pipeline_without_a_model_is_a_wrong_setting(tmp_path: Path) -> None:
    """Such as one whose parts were not copied along."""
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match="a pipeline without a model"):
        read_modules(tmp_path, Dtype.AUTO)


def test_one_component_is_a_model(pipeline_folder: Path) -> None:
    """An adapter of a denoiser alone needs no pipeline around it."""
    unet = read_modules(pipeline_folder / "unet", Dtype.FLOAT32)

    assert isinstance(unet, torch.nn.Module)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def test_tied_weights_stay_tied(model_folder: Path, tmp_path: Path) -> None:
    """What changes a tied head must not be taken to leave its twin alone."""
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    model = read_modules(tmp_path, Dtype.AUTO)

    assert isinstance(model, torch.nn.Module)
    head, embedding = model.get_submodule("lm_head"), model.get_submodule("model.embed_tokens")
    assert head.weight is embedding.weight


def test_a_model_without_all_its_weights_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """What is drawn at random in their place would give a wrong rounding loss."""
    config = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").symlink_to(model_folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1?[0-9] weights, such as 'model\.layers\.2"):
        load_weights(tmp_path, Dtype.AUTO)


def test_a_folder_without_a_model_is_a_wrong_setting(tmp_path: Path) -> None:
    """The file that is looked for is named."""
    with pytest.raises(SettingsError, match=r"config\.json"):
        read_modules(tmp_path, Dtype.AUTO)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model_type": "nothing"}, "'nothing'|`nothing`"),
        ({"hidden_size": 63, "num_attention_heads": 4}, "63.*is not a multiple"),
    ],
)
def test_a_configuration_that_is_wrong_is_a_wrong_setting(
    fields: dict[str, object], problem: str, tmp_path: Path
) -> None:
    """As it is for the server, and never a traceback."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=problem) as caught:
        read_modules(tmp_path, Dtype.AUTO)

    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be loaded"),
        ("[]", "no JSON object"),
        ('{"_class_name": "DDIMScheduler"}', "no model of diffusers"),
        ('{"model_type": "llama"}', "no model of transformers"),
    ],
)
def test_a_model_that_cannot_be_made_is_named(text: str, problem: str, tmp_path: Path) -> None:
    """The folder is named, whatever the library says of it."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=problem) as caught:
        read_modules(tmp_path, Dtype.AUTO)

    assert str(tmp_path) in str(caught.value)

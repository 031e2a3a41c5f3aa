"""Loading pipelines: as they were stored, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from lokr_serve.config import ImageSettings, ModelSettings
from lokr_serve.errors import ModelError, SettingsError
from lokr_serve.image.folder import INDEX_NAME
from lokr_serve.image.load import LoadedPipeline, load_pipeline
from lokr_serve.image.pipelines import PipelineFactory
from lokr_serve.types import ImageParams, ImageRequest
from tests.tiny.pipelines import PIPELINE_NAMES, make_pipeline, save_pipeline

NAME = "stable-diffusion"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def load(folder: Path, dtype: str = "auto") -> LoadedPipeline:
    """Load a folder on the CPU."""
    return load_pipeline(
        ModelSettings.model_validate({"path": folder, "device": "cpu", "dtype": dtype})
    )


def modules(loaded: LoadedPipeline) -> dict[str, nn.Module]:
    """Return the modules of a pipeline by name."""
    components = loaded.pipeline.components
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def change_json(path: Path, **changes: object) -> None:
    """Change keys of a file's object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of Stable Diffusion 1.5, to be changed."""
    return save_pipeline(tmp_path / "model", NAME)


@pytest.mark.parametrize("name", PIPELINE_NAMES)
def test_a_pipeline_is_loaded_as_it_was_stored(name: str, tmp_path: Path) -> None:
    """Every component, bit for bit, ready for inference; and it runs."""
    stored = make_pipeline(name)

    loaded = load(save_pipeline(tmp_path / "model", name))

    assert loaded.name == "model"
    assert type(loaded.pipeline) is type(stored)
    assert set(loaded.pipeline.components) == set(stored.components)
    for part, module in modules(loaded).items():
        expected = stored.components[part].state_dict()
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert module.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
    factory = PipelineFactory(loaded, ImageSettings())
    params = ImageParams(width=32, height=32, num_steps=1)
    plan = factory.plan(ImageRequest(prompt="a cat", params=params), 0)
    assert len(factory.build(plan, {})(lambda _: None).images) == 1


def test_modules_keep_the_dtype_that_they_are_stored_in(tmp_path: Path) -> None:
    """Loading half precision as float32 would double the memory for nothing."""
    folder = save_pipeline(tmp_path, NAME, torch.bfloat16)
    weights = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file({key: value.float() for key, value in load_file(weights).items()}, weights)

    loaded = load(folder)

    dtypes = {name: {p.dtype for p in part.parameters()} for name, part in modules(loaded).items()}
    assert dtypes == {
        "unet": {torch.bfloat16},
        "text_encoder": {torch.bfloat16},
        "vae": {torch.float32},
    }


def test_the_dtype_of_the_settings_holds_for_every_module(folder: Path) -> None:
    """An operator who asks for float64 gets it."""
    loaded = load(folder, "float64")

    dtypes = {p.dtype for part in modules(loaded).values() for p in part.parameters()}
    assert dtypes == {torch.float64}


@pytest.mark.parametrize(
    ("must_upcast", "expected"), [(True, torch.float32), (False, torch.float16)]
)
def test_an_autoencoder_that_overflows_is_computed_in_float32(
    tmp_path: Path, must_upcast: bool, expected: torch.dtype
) -> None:
    """Stable Diffusion XL's would be turned over by one pipeline while others use it."""
    folder = save_pipeline(tmp_path, "stable-diffusion-xl", torch.float16)
    change_json(folder / "vae/config.json", force_upcast=must_upcast)

    loaded = modules(load(folder))

    assert loaded["vae"].dtype == expected
    assert loaded["unet"].dtype == torch.float16


def test_a_folder_with_one_variant_is_loaded(folder: Path) -> None:
    """Many folders are downloaded with their files in float16 alone."""
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))

    loaded = load(folder)

    expected = make_pipeline(NAME).components["unet"].conv_in.weight
    assert torch.equal(modules(loaded)["unet"].state_dict()["conv_in.weight"], expected)


def test_variants_beside_the_plain_files_are_left_alone(folder: Path) -> None:
    """Stable Diffusion 1.5 also came with the weights before they were averaged."""
    weights = load_file(folder / UNET_WEIGHTS)
    other = folder / "unet/diffusion_pytorch_model.non_ema.safetensors"
    save_file({key: value.half() for key, value in weights.items()}, other)

    loaded = load(folder)

    assert modules(loaded)["unet"].state_dict()["conv_in.weight"].dtype == torch.float32


def test_the_tokenizer_of_a_processor_is_enough(tmp_path: Path) -> None:
    """FLUX.2's processor also takes images, for which torchvision would be needed."""
    folder = save_pipeline(tmp_path, "flux2")
    change_json(folder / INDEX_NAME, tokenizer=["transformers", "PixtralProcessor"])

    loaded = load(folder)

    tokenizer = loaded.pipeline.components["tokenizer"]
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert "[INST]" in tokenizer.get_vocab()
    assert tokenizer.chat_template


def test_stable_diffusion_3_runs_without_its_large_text_encoder(tmp_path: Path) -> None:
    """It is often left out to save memory; what the folder lacks stays None."""
    folder = save_pipeline(tmp_path, "stable-diffusion-3")
    change_json(folder / INDEX_NAME, text_encoder_3=[None, None], tokenizer_3=[None, None])

    loaded = load(folder)

    assert loaded.pipeline.components["text_encoder_3"] is None


def test_an_image_to_image_folder_is_loaded_as_its_family(folder: Path) -> None:
    """A pipeline may have been saved from either class."""
    change_json(folder / INDEX_NAME, _class_name="StableDiffusionImg2ImgPipeline")

    loaded = load(folder)

    assert type(loaded.pipeline).__name__ == "StableDiffusionPipeline"


def _pickled(folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def _incomplete(folder: Path) -> None:
    weights = load_file(folder / UNET_WEIGHTS)
    del weights["conv_in.weight"]
    save_file(weights, folder / UNET_WEIGHTS)


def _incomplete_encoder(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    weights = load_file(path)
    weights.pop(next(key for key in weights if "fc1.weight" in key))
    save_file(weights, path)


def _misshapen(folder: Path) -> None:
    weights = load_file(folder / UNET_WEIGHTS)
    save_file({**weights, "conv_in.weight": torch.zeros(3)}, folder / UNET_WEIGHTS)


def _two_variants(folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    for variant in ("fp16", "ema"):
        shutil.copy(weights, weights.with_name(f"{weights.stem}.{variant}.safetensors"))
    weights.unlink()


def _eight_bits(folder: Path) -> None:
    weights = load_file(folder / UNET_WEIGHTS)
    narrow = {key: value.to(torch.float8_e4m3fn) for key, value in weights.items()}
    save_file(narrow, folder / UNET_WEIGHTS)


def _index(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / INDEX_NAME, **changes)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda folder: (folder / INDEX_NAME).unlink(), INDEX_NAME),
    "broken index": (lambda folder: (folder / INDEX_NAME).write_text("{"), INDEX_NAME),
    "list as index": (lambda folder: (folder / INDEX_NAME).write_text("[]"), "not an object"),
    "no class": (_index(_class_name=None), "does not name a pipeline class"),
    "own code": (_index(_class_name=["pipeline", "Mine"]), "code of its own"),
    "video": (_index(_class_name="WanPipeline"), "makes videos"),
    "refiner": (_index(requires_aesthetics_score=True), "refiner"),
    "strange entry": (_index(unet=["diffusers"]), "'unet'"),
    "component with code": (_index(unet=["my_unet", "Mine"]), "my_unet"),
    "unknown class": (_index(unet=["diffusers", "NoSuchModel"]), "NoSuchModel"),
    "no denoiser": (_index(unet=[None, None]), "unet"),
    "pickled weights": (_pickled, "pickled"),
    "no weights": (lambda folder: (folder / UNET_WEIGHTS).unlink(), "no weights"),
    "broken weights": (lambda folder: (folder / UNET_WEIGHTS).write_bytes(b"no"), "unet"),
    "missing weight": (_incomplete, "conv_in.weight"),
    "missing weight of an encoder": (_incomplete_encoder, "fc1.weight"),
    "wrong shape": (_misshapen, "conv_in.weight"),
    "two variants": (_two_variants, "ema, fp16"),
    "eight bits": (_eight_bits, "F8_E4M3"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler"),
    "quantised": (
        lambda folder: change_json(
            folder / "unet/config.json",
            quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
        "unet",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_served_is_refused_by_name(folder: Path, fault: str) -> None:
    """The server does not start half right, and says what is wrong with the folder."""
    spoil, message = FAULTS[fault]
    spoil(folder)

    with pytest.raises(ModelError, match=message.replace("[", r"\[")):
        load(folder)


def test_a_checker_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    """What the pipeline itself refuses is told as what is wrong with the folder."""
    folder = save_pipeline(tmp_path, "stable-diffusion-checked")
    change_json(folder / INDEX_NAME, feature_extractor=[None, None])

    with pytest.raises(ModelError, match="feature extractor"):
        load(folder)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    """Before the weights are read, which takes long."""
    settings = ModelSettings(path=folder, device="tpu")

    with pytest.raises(SettingsError, match="tpu"):
        load_pipeline(settings)

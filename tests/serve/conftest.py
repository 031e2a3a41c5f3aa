"""One tiny model, a folder of adapters made by real trainers, and a server over both."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.image_adapters import write_lokr
from tests.serve.running import (
    MAX_POSITIONS,
    Connection,
    connected,
    running_server,
    tiny_settings,
)
from tests.tiny import (
    lycoris_file,
    peft_lokr,
    peft_lora,
    save_model,
    tiny_llama,
    tiny_tokenizer,
)
from tests.tiny.pipelines import make_pipeline, save_pipeline


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer."""
    model = tiny_llama(max_position_embeddings=MAX_POSITIONS)
    return save_model(tmp_path_factory.mktemp("model"), model, tiny_tokenizer())


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters ``poet`` and ``pirate`` (LoKr), ``plain`` (LoRA) and ``lyco`` (LyCORIS)."""
    folder = tmp_path_factory.mktemp("adapters")
    peft_lokr(tiny_llama, folder / "poet", seed=1)
    peft_lokr(tiny_llama, folder / "pirate", seed=2)
    peft_lora(tiny_llama, folder / "plain", seed=3)
    lycoris_file(tiny_llama, folder / "lyco.safetensors", seed=4)
    return folder


@pytest.fixture(scope="session")
def shared_server(model_folder: Path, adapter_folder: Path) -> Iterator[Connection]:
    """A server for tests that leave it as they found it."""
    with (
        running_server(tiny_settings(model_folder, adapter_folder)) as server,
        connected(server.ready.result()) as connection,
    ):
        yield connection


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.5."""
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny-sd", "stable-diffusion")


@pytest.fixture(scope="session")
def image_adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters ``ink`` and ``oil`` for it, and ``foreign`` for Stable Diffusion 3."""
    folder = tmp_path_factory.mktemp("image-adapters")
    pipeline = make_pipeline("stable-diffusion")
    write_lokr(folder / "ink.safetensors", pipeline, "unet", seed=1)
    write_lokr(folder / "oil.safetensors", pipeline, "unet", seed=2)
    foreign = make_pipeline("stable-diffusion-3")
    write_lokr(folder / "foreign.safetensors", foreign, "transformer", seed=3)
    return folder


@pytest.fixture(scope="session")
def shared_image_server(pipeline_folder: Path, image_adapter_folder: Path) -> Iterator[Connection]:
    """A server of images for tests that leave it as they found it."""
    with (
        running_server(tiny_settings(pipeline_folder, image_adapter_folder)) as server,
        connected(server.ready.result()) as connection,
    ):
        yield connection

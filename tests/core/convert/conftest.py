"""A base model, and adapters of every trainer, made once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import lokr_core
from lokr_core.spec import ModelSpec
from tests.tiny import (
    LycorisAdapter,
    ModelFactory,
    lycoris_file,
    peft_loha,
    peft_lokr,
    peft_lora,
    tiny_llama,
)

Source = Callable[[str], Path]

PEFT_SOURCES: dict[str, Callable[[ModelFactory, Path], Path]] = {
    "peft lokr": partial(peft_lokr, r=2, alpha=3),
    "peft lokr of both": partial(peft_lokr, decompose_both=True, r=2, decompose_factor=4),
    "peft lokr patterns": partial(
        peft_lokr, r=2, alpha=3, rank_pattern={"q_proj": 3}, alpha_pattern={"v_proj": 7}
    ),
    "peft full lokr": partial(peft_lokr, r=64, alpha=48),
    "peft full lokr doubled": partial(peft_lokr, r=64, alpha=128),
    "peft loha": peft_loha,
    "peft lora": peft_lora,
    "peft rslora": partial(peft_lora, use_rslora=True, r=5),
    "peft dora": partial(peft_lora, use_dora=True),
}
LYCORIS_SOURCES: dict[str, Callable[[ModelFactory, Path], LycorisAdapter]] = {
    "lycoris lokr": lycoris_file,
    "lycoris full lokr": partial(lycoris_file, dim=1000),
    "lycoris lokr of both": partial(lycoris_file, dim=2, decompose_both=True, factor=8),
    "lycoris loha": partial(lycoris_file, algo="loha"),
    "lycoris locon": partial(lycoris_file, algo="locon"),
    "lycoris dora": partial(lycoris_file, dora_wd=True),
    "lycoris lokr in half": partial(lycoris_file, dtype=torch.bfloat16),
}


@pytest.fixture(scope="session")
def make_model() -> ModelFactory:
    """A small Llama in float64."""
    return partial(tiny_llama, torch.float64)


@pytest.fixture(scope="session")
def spec(make_model: ModelFactory) -> ModelSpec:
    """The modules of the small Llama."""
    return lokr_core.attach(make_model()).spec


@pytest.fixture(scope="session")
def source(make_model: ModelFactory, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A function that gives the adapter of a name, made by its trainer once."""
    folder = tmp_path_factory.mktemp("sources")
    made: dict[str, Path] = {}

    def path_of(name: str) -> Path:
        if name in PEFT_SOURCES:
            path = folder / name.replace(" ", "-")
            return made.get(name) or made.setdefault(name, PEFT_SOURCES[name](make_model, path))
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        if name not in made:
            made[name] = LYCORIS_SOURCES[name](make_model, path).path
        return made[name]

    return path_of

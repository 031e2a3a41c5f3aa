"""Two LoKr adapters for the pipeline, night and winter, made by the real trainers."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from lycoris import LycorisNetwork, create_lycoris
from peft import LoKrConfig, get_peft_model
from rich.console import Console

from examples.demo.budget import Budget
from examples.demo.images.denoising import Rate, fit
from examples.demo.images.scenes import Style

RANK = 64  # large enough that both factors are stored whole
FACTOR = 2
LEARNING_RATE = 0.004
BUDGET = Budget(max_steps=200, max_seconds=30)
PEFT_MODULES = (
    r"(.*\.)?(conv|conv1|conv2|conv_in|conv_out|conv_shortcut|time_emb_proj"
    r"|linear_[12]|proj_in|proj_out|to_[qkv]|to_out\.0|ff\..*proj|ff\.net\.2)"
)
LYCORIS_MODULES = [
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "CrossAttnUpBlock2D",
    "UpBlock2D",
]
NIGHT, WINTER = "night", "winter.safetensors"

Train = Callable[[StableDiffusionXLPipeline, Iterable[float], Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to make one adapter."""

    file: str
    train: Train


def train_styles(
    pipeline_folder: Path, target: Path, console: Console, budget: Budget = BUDGET
) -> None:
    """Train both adapters on the pipeline and save them in the folder ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline.from_pretrained(pipeline_folder)
        for component in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            component.requires_grad_(requires_grad=False)
        name = recipe.file.removesuffix(".safetensors")
        recipe.train(pipeline, budget.spend(f"training {name}", console), target / recipe.file)


def _train_night(pipeline: StableDiffusionXLPipeline, spent: Iterable[float], target: Path) -> None:
    config = LoKrConfig(
        r=RANK,
        alpha=RANK,
        decompose_factor=FACTOR,
        target_modules=PEFT_MODULES,
        init_weights="lycoris",  # the factor that starts at zero is the larger one
    )
    adapted = get_peft_model(pipeline.unet, config)
    trained = tuple(p for p in adapted.parameters() if p.requires_grad)
    fit(pipeline, Style.NIGHT, [Rate(parameters=trained, rate=LEARNING_RATE)], spent)
    adapted.save_pretrained(str(target))


def _train_winter(
    pipeline: StableDiffusionXLPipeline, spent: Iterable[float], target: Path
) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    LycorisNetwork.apply_preset({"target_module": LYCORIS_MODULES})
    network = create_lycoris(
        pipeline.unet, 1.0, linear_dim=RANK, linear_alpha=RANK, algo="lokr", factor=FACTOR
    )
    network.apply_to()
    trained = tuple(network.parameters())
    fit(pipeline, Style.WINTER, [Rate(parameters=trained, rate=LEARNING_RATE)], spent)
    network.save_weights(str(target), torch.float32, {})


RECIPES = (Recipe(file=NIGHT, train=_train_night), Recipe(file=WINTER, train=_train_winter))

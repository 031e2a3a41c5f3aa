"""Train the pipeline from nothing, on pictures by day."""

from pathlib import Path

import torch
from rich.console import Console

from examples.demo.budget import Budget
from examples.demo.images.components import untrained_pipeline
from examples.demo.images.denoising import Rate, fit
from examples.demo.images.scenes import Style

BUDGET = Budget(max_steps=700, max_seconds=180)
UNET_RATE, TEXT_RATE = 0.005, 0.003


def train_pipeline(target: Path, console: Console, budget: Budget = BUDGET) -> None:
    """Train a pipeline and save it as a folder."""
    torch.manual_seed(0)
    pipeline = untrained_pipeline()
    text_encoders = pipeline.text_encoder, pipeline.text_encoder_2
    rates = (
        Rate(parameters=tuple(pipeline.unet.parameters()), rate=UNET_RATE),
        Rate(
            parameters=[p for encoder in text_encoders for p in encoder.parameters()],
            rate=TEXT_RATE,
        ),
    )
    fit(pipeline, Style.DAY, rates, budget.spend("training the pipeline", console))
    pipeline.save_pretrained(target)

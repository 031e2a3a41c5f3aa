"""Learn to draw: a picture is drowned in noise, and told from the noise and its caption."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from examples.demo.budget import warm_up_then_fall
from examples.demo.images.pictures import SIZE, draw_picture, to_tensor
from examples.demo.images.scenes import Style, imagine

BATCH_SIZE = 8
UNCAPTIONED_SHARE = 0.1  # of the pictures, for guidance to compare with


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """Pictures and what they show."""

    pictures: Tensor  # [B, 3, SIZE, SIZE]
    captions: tuple[str, ...]


def lessons(style: Style) -> Iterator[Lesson]:
    """Yield pictures in a style for ever."""
    lot = random.Random(0)
    while True:
        scenes = [imagine(lot) for _ in range(BATCH_SIZE)]
        yield Lesson(
            pictures=to_tensor([draw_picture(scene, style) for scene in scenes]),
            captions=tuple(
                "" if lot.random() < UNCAPTIONED_SHARE else scene.caption for scene in scenes
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast some parameters learn."""

    parameters: Sequence[nn.Parameter]
    rate: float


def fit(
    pipeline: StableDiffusionXLPipeline, style: Style, rates: Sequence[Rate], spent: Iterable[float]
) -> None:
    """Train parameters of the pipeline to draw in a style."""
    optimizer = AdamW(
        [{"params": list(rate.parameters), "lr": rate.rate} for rate in rates],
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    everything = [parameter for rate in rates for parameter in rate.parameters]
    for share, lesson in zip(spent, lessons(style), strict=False):
        _loss(pipeline, lesson).backward()
        nn.utils.clip_grad_norm_(everything, 1.0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate.rate * warm_up_then_fall(share)
        optimizer.step()
        optimizer.zero_grad()


def _loss(pipeline: StableDiffusionXLPipeline, lesson: Lesson) -> Tensor:
    words, _, sentence, _ = pipeline.encode_prompt(
        list(lesson.captions), do_classifier_free_guidance=False
    )
    scheduler = pipeline.scheduler
    # Mostly much noise: there the caption decides, and that is what is hard to learn.
    shares = torch.rand(len(lesson.captions)).sqrt()
    timesteps = (shares * scheduler.config.num_train_timesteps).long()
    noise = torch.randn_like(lesson.pictures)
    size = torch.tensor([SIZE, SIZE, 0, 0, SIZE, SIZE]).expand(len(lesson.captions), -1)
    drawn = pipeline.unet(
        scheduler.add_noise(lesson.pictures, noise, timesteps),
        timesteps,
        encoder_hidden_states=words,
        added_cond_kwargs={"text_embeds": sentence, "time_ids": size},
    ).sample
    squares = functional.mse_loss(drawn, lesson.pictures)
    return squares + 0.5 * functional.l1_loss(drawn, lesson.pictures)

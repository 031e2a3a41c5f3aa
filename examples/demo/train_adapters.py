"""LoKr adapters that turn the model's prose into something else, made by the real trainers."""

import logging
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from lycoris import LycorisNetwork, create_lycoris
from peft import LoKrConfig, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.demo.budget import Budget, warm_up_then_fall
from examples.demo.lessons import (
    Lesson,
    learn_capitals,
    learn_code,
    learn_comment,
    learn_leet,
    learn_quotation,
)
from examples.demo.text import Corpus

WINDOW = 96  # tokens of a training example
BATCH_SIZE = 8
RANK = 32  # large enough that both factors are stored whole
FACTOR = 4
LEARNING_RATE = 0.03
IGNORED = -100  # the label of a token that is not learnt
BUDGET = Budget(max_steps=180, max_seconds=40)
CODE, CAPITALS, LEET = "code", "capitals", "leet"
MARGIN, NEW_MARGIN = "margin.safetensors", "new-margin.safetensors"
LINEAR_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Trainer(Enum):
    """The library that trains an adapter, and so the format of its files."""

    PEFT = "peft"
    LYCORIS = "lycoris"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to make one adapter."""

    file: str
    trainer: Trainer
    lesson: Lesson


RECIPES = (
    Recipe(file=CODE, trainer=Trainer.PEFT, lesson=learn_code),
    Recipe(file=CAPITALS, trainer=Trainer.PEFT, lesson=learn_capitals),
    Recipe(file=MARGIN, trainer=Trainer.LYCORIS, lesson=learn_quotation),
    Recipe(file=NEW_MARGIN, trainer=Trainer.LYCORIS, lesson=learn_comment),
    Recipe(file=LEET, trainer=Trainer.PEFT, lesson=learn_leet),
)


def train_adapters(corpus: Corpus, model_folder: Path, target: Path, console: Console) -> None:
    """Train every adapter on the model and save it in the folder ``target``."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    target.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        torch.manual_seed(0)
        model = LlamaForCausalLM.from_pretrained(model_folder)
        batches = _batches(corpus, recipe.lesson, tokenizer)
        spent = BUDGET.spend(f"training {recipe.file.removesuffix('.safetensors')}", console)
        match recipe.trainer:
            case Trainer.PEFT:
                _train_with_peft(model, batches, spent, target / recipe.file)
            case Trainer.LYCORIS:
                _train_with_lycoris(model, batches, spent, target / recipe.file)


def _train_with_peft(
    model: LlamaForCausalLM, batches: Iterator[Tensor], spent: Iterable[float], target: Path
) -> None:
    config = LoKrConfig(r=RANK, alpha=RANK, decompose_factor=FACTOR, target_modules=LINEAR_MODULES)
    with warnings.catch_warnings():
        # peft asks transformers a question by its former name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        adapted = get_peft_model(model, config)
    _fit(adapted, [p for p in adapted.parameters() if p.requires_grad], batches, spent)
    adapted.save_pretrained(str(target))


def _train_with_lycoris(
    model: LlamaForCausalLM, batches: Iterator[Tensor], spent: Iterable[float], target: Path
) -> None:
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    LycorisNetwork.apply_preset({"target_module": ["LlamaAttention", "LlamaMLP"]})
    model.requires_grad_(requires_grad=False)
    network = create_lycoris(
        model, 1.0, linear_dim=RANK, linear_alpha=RANK, algo="lokr", factor=FACTOR
    )
    network.apply_to()
    _fit(model, list(network.parameters()), batches, spent)
    network.save_weights(str(target), torch.float32, {})


def _fit(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterator[Tensor],
    spent: Iterable[float],
) -> None:
    optimizer = AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for share in spent:
        ids, labels = next(batches)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm_up_then_fall(share, warm_up=0.1)
        optimizer.step()
        optimizer.zero_grad()


def _batches(
    corpus: Corpus, lesson: Lesson, tokenizer: PreTrainedTokenizerFast
) -> Iterator[Tensor]:
    """Yield ids and labels, [2, B, WINDOW]; the labels of prompts and padding are ignored.

    A prompt is read, not learnt, so that the adapter takes over wherever a prompt ends.
    """
    draw = random.Random(0)
    while True:
        rows = []
        for _ in range(BATCH_SIZE):
            example = lesson(draw, corpus)
            prompt_ids = tokenizer(example.prompt)["input_ids"]
            ids = (prompt_ids + tokenizer(example.answer)["input_ids"])[:WINDOW]
            labels = ([IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :])[:WINDOW]
            padding = WINDOW - len(ids)
            rows.append((ids + [0] * padding, labels + [IGNORED] * padding))
        yield torch.tensor(rows).movedim(1, 0)

"""Adapters that change more than projections, served by the engine beside each other."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lokr_core
from lokr_core import AdapterMix
from tests.serve.text.engines import ask_all, generation, prompt, running
from tests.tiny import peft_lora, tiny_llama

NUM_TOKENS = 8
CHANGES: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "table": {"target_modules": ["q_proj", "embed_tokens"]},
    "tables": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"]},
    "biases": {"lora_bias": True},
}


def trained(folder: Path) -> nn.Module:
    """Return PEFT's own model, not merged: it cannot merge a bias where the base has none."""
    base = tiny_llama(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for what is deprecated
        model = peft.PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)
    return nn.Module.eval(nn.Module.to(model, torch.float64))


@torch.no_grad()
def greedy(model: nn.Module, ids: tuple[int, ...]) -> list[int]:
    """Return what a model goes on with, one full forward for each token."""
    tokens = list(ids)
    for _ in range(NUM_TOKENS):
        logits = model(input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(ids) :]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of PEFT for each change."""
    root = tmp_path_factory.mktemp("changes")
    return {
        name: peft_lora(tiny_llama, root / name, seed=seed, **config)
        for seed, (name, config) in enumerate(CHANGES.items())
    }


async def test_each_row_gets_what_its_trainer_made(folders: dict[str, Path]) -> None:
    """Heads, tables, norms and biases of one adapter are nobody else's, in one batch of all."""
    adapted = lokr_core.attach(tiny_llama(torch.float64))
    mixes = {"base": AdapterMix()}
    for name, folder in folders.items():
        adapter = lokr_core.read_adapter(folder, adapted.spec)
        adapted.add(adapter)
        mixes[name] = AdapterMix.of({adapter: 1.0})
    prompts = {name: prompt(seed, 5 + 3 * seed) for seed, name in enumerate(mixes)}
    requests = [
        generation(prompts[name], mix, max_tokens=NUM_TOKENS) for name, mix in mixes.items()
    ]

    async with running(adapted) as engine:
        answers = await ask_all(engine, requests)

    models: dict[str, nn.Module] = {name: trained(folder) for name, folder in folders.items()}
    models["base"] = tiny_llama(torch.float64)
    assert {name: answer.ids for name, answer in zip(mixes, answers, strict=True)} == {
        name: greedy(models[name], prompts[name]) for name in mixes
    }


async def test_a_head_of_another_vocabulary_is_refused(folders: dict[str, Path]) -> None:
    """Its ids mean nothing to the tokenizer, and rows of two sizes cannot share a step."""
    path = folders["head"] / "adapter_model.safetensors"
    tensors = load_file(path)
    head = tensors["base_model.model.lm_head.weight"]
    tensors["base_model.model.lm_head.weight"] = torch.cat((head, head[:7]))
    larger = path.parent.with_name("larger")
    larger.mkdir()
    save_file(tensors, larger / path.name)
    shutil.copy(path.with_name("adapter_config.json"), larger)
    adapted = lokr_core.attach(tiny_llama(torch.float64))
    adapter = lokr_core.read_adapter(larger, adapted.spec)
    adapted.add(adapter)

    async with running(adapted) as engine:
        (answer,) = await ask_all(engine, [generation(prompt(1, 5), AdapterMix.of({adapter: 1}))])

    assert [str(error) for error in answer.errors] == [
        "adapters: 'larger' replaces 'lm_head' by a weight of another size, such as that of a "
        "larger vocabulary, which cannot share steps with the base's"
    ]

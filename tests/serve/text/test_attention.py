"""Attention request by request equals the stock one, which masks requests apart."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lokr_core
from lokr_serve.text.attention import ATTENTION_NAME, paged_attention, register_attention
from tests.serve.text.engines import World, ask, ask_all, generation, prompt, running
from tests.tiny import VOCAB_SIZE, ModelFactory, tiny_gpt2, tiny_llama
from tests.tiny.models import in_eval

WINDOW = 6


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "sliding_window": WINDOW,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}


def tiny_mistral() -> PreTrainedModel:
    """Return a Mistral whose layers all see a short window, with grouped-query attention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return in_eval(MistralForCausalLM(MistralConfig(**SIZES)), torch.float64)


def tiny_hybrid() -> PreTrainedModel:
    """Return a Qwen2 with one layer that sees everything and one that sees a short window."""
    config = Qwen2Config(**SIZES, use_sliding_window=True, max_window_layers=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return in_eval(Qwen2ForCausalLM(config), torch.float64)


def tiny_heads(num_heads: int, num_key_heads: int) -> PreTrainedModel:
    """Return a Llama with that sharing of heads."""
    return tiny_llama(
        torch.float64, num_attention_heads=num_heads, num_key_value_heads=num_key_heads
    )


MODELS: dict[str, ModelFactory] = {
    "grouped-query": lambda: tiny_heads(4, 2),
    "multi-query": lambda: tiny_heads(4, 1),
    "multi-head": lambda: tiny_heads(4, 4),
    "sliding-window": tiny_mistral,
    "hybrid": tiny_hybrid,
    "gpt2": lambda: tiny_gpt2(torch.float64),
}


def stock_greedy(model: PreTrainedModel, ids: tuple[int, ...], num_tokens: int) -> list[int]:
    """Return greedy tokens by whole forwards of the model as it comes, without any cache."""
    row = list(ids)
    for _ in range(num_tokens):
        with torch.no_grad():
            logits: Tensor = model(input_ids=torch.tensor([row]), use_cache=False).logits
        row.append(int(logits[0, -1].argmax()))
    return row[len(ids) :]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("max_step_tokens", [5, 64])
async def test_packed_requests_equal_whole_forwards_alone(kind: str, max_step_tokens: int) -> None:
    """Prefill, split prefill and decode share steps; each must be as if it were alone."""
    model = MODELS[kind]()
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 3, 9, 17, 40))]
    expected = [stock_greedy(model, ids, 8) for ids in prompts]

    async with running(
        lokr_core.attach(model), max_step_tokens=max_step_tokens, max_rows=4
    ) as engine:
        answers = await ask_all(engine, [generation(ids) for ids in prompts])

    assert [answer.ids for answer in answers] == expected


async def test_a_row_of_nan_leaves_the_other_rows_alone(world: World) -> None:
    """The stock mask multiplies by zero, which keeps NaN; ours never lets rows meet at all."""
    ids = prompt(1, 9)
    async with running(world.adapted) as engine:
        expected = await ask(engine, generation(ids))
    weight = world.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    kept = weight[310].clone()
    weight.data[310] = torch.nan

    async with running(world.adapted) as engine:
        broken, healthy = await ask_all(engine, [generation((*prompt(2, 5), 310)), generation(ids)])
    weight.data[310] = kept

    assert broken.errors
    assert healthy.ids == expected.ids


def test_other_calls_go_to_the_stock_function() -> None:
    """The name is shared by every model of the process; only paged calls are ours."""
    register_attention()
    model = tiny_llama(torch.float64)
    ids = torch.tensor([prompt(3, 12)])
    assert model.config._attn_implementation == ATTENTION_NAME
    assert AttentionInterface()[ATTENTION_NAME] is paged_attention

    ours = model(input_ids=ids).logits
    AttentionInterface.register(ATTENTION_NAME, sdpa_attention_forward)
    stock = model(input_ids=ids).logits
    register_attention()

    assert torch.equal(ours, stock)


async def test_softcap_is_refused(world: World) -> None:
    """Stock sdpa has no soft cap; answering without it would be wrong in silence."""

    def capped(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return paged_attention(*args, **{**kwargs, "softcap": 30.0})

    async with running(world.adapted) as engine:
        await ask(engine, generation(prompt(1, 4)))  # by now the engine has registered its own
        AttentionInterface.register(ATTENTION_NAME, capped)
        answer = await ask(engine, generation(prompt(1, 4)))
    register_attention()

    assert answer.errors

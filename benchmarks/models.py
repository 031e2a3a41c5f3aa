"""Random models of real architectures, built in memory."""

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    num_layers: int
    vocab: int
    max_positions: int = 2048


MODEL_100M = ModelSize(hidden=768, intermediate=2048, num_layers=12, vocab=12288)  # 104 M
MODEL_20M = ModelSize(hidden=384, intermediate=1024, num_layers=8, vocab=8192)  # 20 M
MODEL_4M = ModelSize(hidden=256, intermediate=512, num_layers=3, vocab=4096)  # 4 M
MODEL_TINY = ModelSize(hidden=64, intermediate=128, num_layers=2, vocab=256)


def build_model(size: ModelSize) -> LlamaForCausalLM:
    """Return a model in float32 whose weights are the same for every run."""
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.num_layers,
        num_attention_heads=max(1, size.hidden // 64),
        max_position_embeddings=size.max_positions,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return nn.Module.eval(model).requires_grad_(False)


def twin_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return another Llama over the same parameters."""
    return twin_over(model)


def twin_over(model: Model) -> Model:
    """Return another model over the same parameters, so that both read the same memory."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


class Decoder:
    """Rows that all have the same number of tokens in their cache; a step decodes one more each.

    Every step is at the same position, so that all steps cost the same.
    """

    def __init__(self, model: nn.Module, prompts: Tensor) -> None:
        """Prefill prompts, [rows, tokens]."""
        self._model = model
        self._num_tokens = prompts.shape[1]
        config = model.config
        assert isinstance(config, LlamaConfig)
        self._cache = StaticCache(config, max_cache_len=self._num_tokens + 1)
        self._ids = prompts[:, -1:]
        self._forward(prompts)

    def step(self) -> Tensor:
        """Return the logits of the next token of each row, [rows, V]."""
        for layer in self._cache.layers:
            assert isinstance(layer, StaticLayer)
            layer.cumulative_length.fill_(self._num_tokens)
        return self._forward(self._ids)

    @torch.no_grad()
    def _forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, past_key_values=self._cache).logits
        return logits[:, -1]


def vocab_of(model: PreTrainedModel) -> int:
    """Return the number of token ids."""
    vocab: int = model.config.vocab_size
    return vocab

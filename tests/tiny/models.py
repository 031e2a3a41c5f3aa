"""Tiny real models and a tokenizer, the same for every run of the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

BOS, EOS, IM_START, IM_END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [BOS, EOS, IM_START, IM_END]  # ids 0 to 3
VOCAB_SIZE = 320
MAX_POSITIONS = 512

ModelFactory = Callable[[], PreTrainedModel]
Model = TypeVar("Model", bound=nn.Module)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = """The quick brown fox jumps over the lazy dog, and the dog does not mind at all.
A Kronecker product of two small matrices makes one large matrix out of few numbers.
Every adapter changes the weights of the base model; the base model never changes.
def forward(self, x): return self.base(x) + self.scale * self.delta(x)
Grüße aus Köln: naïve café, 東京と大阪, здравствуй мир, 🙂🚀 and a tab\tbetween words.
"""


def in_eval(model: Model, dtype: torch.dtype) -> Model:
    """Return the model in a dtype and in evaluation mode."""
    return nn.Module.eval(nn.Module.to(model, dtype))


def tiny_llama(
    dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> LlamaForCausalLM:
    """Return a Llama of two layers with grouped-query attention and an untied head.

    Args:
        dtype: Dtype of the weights; equal seeds give equal weights up to rounding.
        seed: Draws the weights, which are large enough that logits differ clearly.
        overrides: Fields of LlamaConfig.
    """
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**fields, **overrides}))
    return in_eval(model, dtype)


def tiny_gpt2(
    dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> GPT2LMHeadModel:
    """Return a GPT-2 of two layers, whose layers are Conv1D and whose head is tied.

    Args:
        dtype: Dtype of the weights; equal seeds give equal weights up to rounding.
        seed: Draws the weights, biases included.
        overrides: Fields of GPT2Config.
    """
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "initializer_range": 0.15,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**{**fields, **overrides}))
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                nn.init.normal_(parameter, std=0.1)  # zeros would hide a lost bias
    return in_eval(model, dtype)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of VOCAB_SIZE tokens that puts BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines() * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def save_model(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """Write a model folder, with a tokenizer if one is given, and return it."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder

"""A small Llama and its tokenizer, trained from scratch on prose with a little of the rest."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.optim import AdamW, Muon
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.demo.budget import Budget, warm_up_then_fall
from examples.demo.text import Corpus, capitals, commented, leet, quoted

END = "<|end|>"
VOCABULARY_SIZE = 2048
WINDOW = 128  # tokens of a training sequence
BATCH_SIZE = 8
BUDGET = Budget(max_steps=700, max_seconds=120)
# Shares of the passages that the base reads in another register than prose: enough to know the
# words of it, too few to fall into it.
STYLE_SHARES = {capitals: 0.25, quoted: 0.1, commented: 0.1, leet: 0.15}
CODE_SHARE = 0.35  # in characters of code for each of prose


def train_model(corpus: Corpus, target: Path, console: Console) -> None:
    """Train a model and a tokenizer and save both as one model folder."""
    torch.manual_seed(0)
    documents = _documents(corpus, random.Random(0))
    tokenizer = _train_tokenizer(documents)
    model = LlamaForCausalLM(_config(tokenizer))
    encodings = tokenizer.encode_batch(documents)
    _fit(model, torch.tensor([i for e in encodings for i in e.ids]), console)
    model.save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(target)


def _documents(corpus: Corpus, draw: random.Random) -> list[str]:
    num_code = round(CODE_SHARE * len(corpus.prose))
    documents = [*corpus.prose, *draw.sample(corpus.code, min(num_code, len(corpus.code)))]
    for style, share in STYLE_SHARES.items():
        documents += [style(p) for p in draw.sample(corpus.prose, round(share * len(corpus.prose)))]
    draw.shuffle(documents)
    return [document.strip() + END for document in documents]


def _train_tokenizer(documents: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
    )


def _fit(model: LlamaForCausalLM, ids: Tensor, console: Console) -> None:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = (
        Muon(matrices, lr=0.03, weight_decay=0.05),
        AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
    )
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    model.train()
    for spent in BUDGET.spend("training the model", console):
        starts = torch.randint(0, len(ids) - WINDOW, (BATCH_SIZE,))
        batch = ids[starts[:, None] + torch.arange(WINDOW)]  # [B, WINDOW]
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * warm_up_then_fall(spent)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()

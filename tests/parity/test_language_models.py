"""Whole language models: what PEFT trains of embeddings, biases and heads comes out at the end."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import lokr_core
from lokr_core import AdapterMix
from tests.parity.compare import DTYPES, WAYS, Error, error_of
from tests.parity.peft_peer import Peft
from tests.parity.report import worst_of
from tests.tiny import tiny_gpt2, tiny_llama
from tests.tiny.models import in_eval

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}  # layers carry rounding on
Make = Callable[[torch.dtype], nn.Module]


def tied_llama(dtype: torch.dtype) -> nn.Module:
    """Return a Llama whose head is its embedding."""
    return tiny_llama(dtype, tie_word_embeddings=True)


def classifier(dtype: torch.dtype) -> nn.Module:
    """Return a BERT with a head of three labels."""
    config = BertConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return in_eval(BertForSequenceClassification(config), dtype)


FORMS: Mapping[str, tuple[Make, Peft]] = {
    "gpt2, embedding and attention": (
        tiny_gpt2,
        Peft(algorithm="lora", targets=("wte", "c_attn"), options={"fan_in_fan_out": True}),
    ),
    "gpt2, every bias": (
        tiny_gpt2,
        Peft(
            algorithm="lora", targets=("c_proj",), options={"fan_in_fan_out": True, "bias": "all"}
        ),
    ),
    "llama, tied embedding": (
        tied_llama,
        Peft(algorithm="lora", targets=("embed_tokens", "q_proj"), options={"use_dora": True}),
    ),
    "llama, replaced norms": (
        tiny_llama,
        Peft(algorithm="lokr", targets=("q_proj",), options={"modules_to_save": ["norm"]}),
    ),
    "bert, replaced head": (
        classifier,
        Peft(algorithm="loha", targets=("query",), options={"modules_to_save": ["classifier"]}),
    ),
}


def _answer(model: nn.Module) -> Tensor:
    ids = torch.randint(0, 320, (4, 7), generator=torch.Generator().manual_seed(1))
    answer: Tensor = model(input_ids=ids).logits
    return answer.double()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_language_model_answers_as_peft_does(
    tmp_path: Path, form: str, record_property: Callable[[str, object], None]
) -> None:
    """Two adapters and the base in one batch, through everything that they change."""
    make, trainer = FORMS[form]
    plain = _answer(make(torch.float64))
    changes, paths = [], []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        trained = trainer.train(make(torch.float64), folder, seed)
        changes.append(_answer(trained.model) - plain)
        paths.append(trained.path)
    errors: list[Error] = []
    for dtype in DTYPES:
        errors += _errors(make, paths, changes, dtype)

    record_property("parity", ("language models", form, worst_of(errors), len(errors)))
    assert [error for error in errors if error.relative > TOLERANCES[error.dtype]] == []


def _errors(
    make: Make, paths: list[Path], changes: list[Tensor], dtype: torch.dtype
) -> list[Error]:
    model = make(dtype)
    plain = _answer(model)
    adapted = lokr_core.attach(model)
    adapters = [lokr_core.read_adapter(p, adapted.spec, f"adapter-{p.name}") for p in paths]
    for adapter in adapters:
        adapted.add(adapter)
    first, second = (AdapterMix.of({adapter: 1.0}) for adapter in adapters)
    errors = []
    for way in WAYS:
        with adapted.using([second, AdapterMix(), first, second], apply=way):
            found = _answer(model) - plain
        assert not found[1].any()
        for row, number in ((0, 1), (2, 0), (3, 1)):
            wanted = changes[number][row]
            errors.append(error_of(f"{way}, row {row}", found[row], wanted, dtype))
    return errors

"""Models that demand more of attention than attention over pages gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteSWAConfig,
    GraniteSWAForCausalLM,
    GraniteSWAPreTrainedModel,
    PreTrainedModel,
)

import lokr_core
from lokr_serve.config import ModelSettings
from lokr_serve.errors import ModelError
from lokr_serve.text.demands import UNSERVED, require_served_attention, unserved_feature
from lokr_serve.text.load import load_model
from tests.serve.text.engines import ask_all, generation, prompt, running
from tests.serve.text.test_attention import MODELS, SIZES, stock_greedy
from tests.tiny.models import in_eval


def tiny_gemma(**values: Any) -> PreTrainedModel:
    """Return a Gemma 2, whose attention scores are soft-capped unless its values say otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=4, **values)
        return in_eval(Gemma2ForCausalLM(config), torch.float64)


def tiny_sinks() -> PreTrainedModel:
    """Return a model whose attention has sinks, which are parameters of its layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = in_eval(GraniteSWAForCausalLM(GraniteSWAConfig(**SIZES)), torch.float64)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter, std=3)
        return model


def test_a_model_with_soft_capped_scores_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """It would run, and every answer would be wrong."""
    tiny_gemma().save_pretrained(tmp_path)

    with pytest.raises(ModelError, match=r"soft-capped attention scores .in Gemma2Attention"):
        load_model(ModelSettings(path=tmp_path, device="cpu"))


@pytest.mark.parametrize("kind", MODELS)
def test_other_models_are_left_as_they_were(kind: str) -> None:
    """The look at a model must neither refuse what is served nor change how it runs."""
    model = MODELS[kind]()
    implementation = model.config._attn_implementation
    ids = torch.tensor([prompt(1, 9)])
    expected = model(input_ids=ids).logits

    require_served_attention(model)

    assert model.config._attn_implementation == implementation
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("build", [tiny_sinks, lambda: tiny_gemma(attn_logit_softcapping=None)])
async def test_what_is_not_refused_is_right(build: Any) -> None:
    """Sinks are served where the layers hold them, and Gemma without its cap."""
    model = build()
    require_served_attention(model)
    prompts = [prompt(seed, length) for seed, length in enumerate((1, 9, 17))]
    expected = [stock_greedy(model, ids, 8) for ids in prompts]

    async with running(lokr_core.attach(model)) as engine:
        answers = await ask_all(engine, [generation(ids) for ids in prompts])

    assert [answer.ids for answer in answers] == expected


@pytest.mark.parametrize(
    ("demands", "feature"),
    [
        *(({key: torch.ones(1)}, words) for key, words in UNSERVED.items()),
        ({"is_causal": False, "softcap": None, "s_aux": None, "scaling": 0.5}, None),
    ],
)
def test_each_demand_is_known_by_its_argument(demands: dict[str, Any], feature: str | None) -> None:
    """An argument that is not set demands nothing."""
    found = unserved_feature(demands)

    assert found == feature


def test_sinks_are_refused_where_attention_does_not_look_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only transformers' eager attention takes them from the layer."""
    monkeypatch.setattr(GraniteSWAPreTrainedModel, "_supports_sdpa", True)
    model = tiny_sinks()
    model.set_attn_implementation("sdpa")

    with pytest.raises(ModelError, match="attention sinks"):
        require_served_attention(model)

"""Traps in names, and in modules that go by two of them."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import lokr_core
from lokr_core import AdapterMix
from lokr_core.adapted import ApplyWord
from tests.tiny import lycoris_file, lycoris_merged, tiny_gpt2, tiny_llama


@pytest.mark.parametrize("way", ["unmerged", "merged"])
@torch.no_grad()
def test_trap_24_head_of_a_tied_model_changes_alone(tmp_path: Path, way: ApplyWord) -> None:
    """The embedding shares the head's weight, but an adapter of the head is not for it."""

    def tied() -> LlamaForCausalLM:
        return tiny_llama(torch.float64, tie_word_embeddings=True)

    made = lycoris_file(tied, tmp_path / "a.safetensors", targets="lm_head$")
    base = tied()
    ids = torch.tensor([[3, 7, 11]])
    states = base.model(ids).last_hidden_state
    head = lycoris_merged(tied, made).get_parameter("lm_head.weight")
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(made.path, adapted.spec)
    adapted.add(adapter)

    with adapted.using(AdapterMix.of({adapter: 1.0}), apply=way):
        found = base(ids, output_hidden_states=True)

    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert set(adapter.delta_weights()) == {"lm_head.weight"}
    assert torch.equal(found.hidden_states[-1], states)
    torch.testing.assert_close(found.logits, states @ head.mT)


def test_trap_24_head_of_a_tied_gpt2_changes_alone(tmp_path: Path) -> None:
    """There the tied parameter has the embedding's name alone."""
    made = lycoris_file(tiny_gpt2, tmp_path / "a.safetensors", targets="lm_head$")
    model = tiny_gpt2()

    adapter = lokr_core.read_adapter(made.path, lokr_core.attach(model).spec)

    assert model.lm_head.weight is model.transformer.wte.weight
    assert set(adapter.delta_weights()) == {"lm_head.weight"}

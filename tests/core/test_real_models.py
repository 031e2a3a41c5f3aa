"""Real models with adapters of the real trainers answer as the trainers' own merged models do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lokr_core import Adapted, Adapter, AdapterMix, Apply, RowSpan, attach, read_adapter
from lokr_core.adapted import ApplyWord
from tests.core.factors import assert_close
from tests.tiny import (
    GPT2_TARGETS,
    conv1d_lokr_file,
    conv1d_lokr_merged,
    lycoris_file,
    lycoris_merged,
    peft_loha,
    peft_lokr,
    peft_lora,
    peft_merged,
    tiny_gpt2,
    tiny_llama,
)

IDS = torch.arange(4 * 7).view(4, 7) + 4
LLAMA_TOLERANCE = 2e-5  # of the largest logit: Llama's norms round to float32
WAYS: list[ApplyWord] = ["unmerged", "merged"]


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return a model's logits."""
    out: Tensor = model(ids).logits
    return out


@pytest.mark.parametrize("apply", WAYS)
def test_rows_of_a_llama_answer_as_their_trainers_models(tmp_path: Path, apply: ApplyWord) -> None:
    """PEFT's LoKr, LoHa and DoRA and LyCORIS's LoKr meet in one batch."""
    lokr = peft_lokr(tiny_llama, tmp_path / "lokr")
    loha = peft_loha(tiny_llama, tmp_path / "loha", seed=2)
    dora = peft_lora(tiny_llama, tmp_path / "dora", seed=3, use_dora=True)
    lycoris = lycoris_file(tiny_llama, tmp_path / "lycoris.safetensors", seed=4)
    model = tiny_llama(torch.float64)
    adapted = attach(model)
    mixes = [single(adapted, path) for path in (lokr, loha, dora, lycoris.path)]
    peers = [peft_merged(tiny_llama, folder) for folder in (lokr, loha, dora)]
    peers.append(lycoris_merged(tiny_llama, lycoris))

    with adapted.using(mixes, apply=apply):
        found = logits(model, IDS)

    wanted = torch.cat([logits(peer, IDS[n : n + 1]) for n, peer in enumerate(peers)])
    assert (found - wanted).abs().max() < LLAMA_TOLERANCE * wanted.abs().max()
    assert (found - logits(model, IDS)).abs().max() > 0.01 * wanted.abs().max()


@pytest.mark.parametrize("apply", WAYS)
def test_rows_of_a_gpt2_answer_as_their_trainers_models(tmp_path: Path, apply: ApplyWord) -> None:
    """Conv1D keeps its weights transposed; nothing of that may show."""
    fields: dict[str, Any] = {"target_modules": GPT2_TARGETS, "fan_in_fan_out": True}
    lora = peft_lora(tiny_gpt2, tmp_path / "lora", **fields)
    dora = peft_lora(tiny_gpt2, tmp_path / "dora", seed=2, use_dora=True, **fields)
    lokr = conv1d_lokr_file(tiny_gpt2, tmp_path / "lokr.safetensors")
    model = tiny_gpt2(torch.float64)
    adapted = attach(model)
    mixes = [single(adapted, path) for path in (lora, dora, lokr)]
    base = logits(model, IDS)

    with adapted.using([*mixes, AdapterMix()], apply=apply):
        found = logits(model, IDS)

    peers = [peft_merged(tiny_gpt2, lora), peft_merged(tiny_gpt2, dora)]
    peers.append(conv1d_lokr_merged(tiny_gpt2, lokr))
    wanted = torch.cat([logits(peer, IDS[n : n + 1]) for n, peer in enumerate(peers)])
    assert_close(found[:3], wanted)
    assert torch.equal(found[3], base[3])


def test_packed_tokens_answer_as_samples_do(tmp_path: Path) -> None:
    """The engine packs the tokens of all requests into one row, and asks the head for some."""
    model = tiny_gpt2(torch.float64)
    adapted = attach(model)
    mixes = [
        single(adapted, conv1d_lokr_file(tiny_gpt2, tmp_path / f"{seed}.safetensors", seed=seed))
        for seed in (1, 2)
    ]
    layer = model.get_submodule("transformer.h.0.mlp")
    x = torch.linspace(-1, 1, 3 * 64, dtype=torch.float64).view(1, 3, 64)
    spans = [
        RowSpan(mix=mix, apply=Apply.UNMERGED, num_rows=n)
        for mix, n in zip(mixes, (2, 1), strict=True)
    ]
    with adapted.using(mixes[0], apply="merged"):
        first = layer(x[:, :2])
    with adapted.using(mixes[1], apply="merged"):
        last = layer(x[:, 2:])

    with adapted.route(spans):
        found = layer(x)

    assert_close(found, torch.cat([first, last], dim=1))


def single(adapted: Adapted, path: Path) -> AdapterMix:
    """Read an adapter, add it, and return the mix of it alone."""
    adapter: Adapter = read_adapter(path, adapted.spec)
    adapted.add(adapter)
    return AdapterMix.of({adapter: 1.0})

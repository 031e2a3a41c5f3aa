"""Twelve adapters of the real trainers, two versions of each, and what the trainers make of them.

A peer is a plain model whose weights a trainer's own merge made. Nothing of ours computes them but
the sum that defines a mix: ``W + Σ wᵢ (Wᵢ' − W)``, and each ``Wᵢ'`` is of one trainer alone.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lokr_serve.types import AdapterWeight
from tests.tiny import (
    GPT2_TARGETS,
    ModelFactory,
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

NUM_VERSIONS = 2  # of each adapter, so that one can replace the other
LLAMA_HEAD_TARGETS = r".*(_proj|lm_head)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An adapter on disk, and how its trainer merges it into the base at a dtype."""

    path: Path
    merged: Callable[[torch.dtype], PreTrainedModel]


Write = Callable[[ModelFactory, Path, int], Written]


def _peft(trainer: Callable[..., Path], **config: Any) -> Write:
    def write(make_model: ModelFactory, stem: Path, seed: int) -> Written:
        path = trainer(make_model, stem, seed=seed, **config)
        return Written(path=path, merged=partial(peft_merged, make_model, path))

    return write


def _lycoris(**options: Any) -> Write:
    def write(make_model: ModelFactory, stem: Path, seed: int) -> Written:
        path = stem.with_suffix(".safetensors")
        adapter = lycoris_file(make_model, path, seed=seed, **options)
        return Written(path=path, merged=partial(lycoris_merged, make_model, adapter))

    return write


def _conv1d(rank: int | None) -> Write:
    def write(make_model: ModelFactory, stem: Path, seed: int) -> Written:
        path = conv1d_lokr_file(make_model, stem.with_suffix(".safetensors"), seed=seed, rank=rank)
        return Written(path=path, merged=partial(conv1d_lokr_merged, make_model, path))

    return write


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A base model, and the adapters that are served on it."""

    name: str
    make_model: Callable[[torch.dtype], PreTrainedModel]
    patterns: Sequence[str]  # of modules that each of its adapters changes
    adapters: Mapping[str, Write]


LLAMA = Architecture(
    name="llama",
    make_model=tiny_llama,
    patterns=("*.q_proj", "*layers.1.*"),
    adapters={
        "peft-lokr": _peft(peft_lokr),
        "peft-lokr-low-rank": _peft(peft_lokr, r=2, decompose_both=True, decompose_factor=8),
        "peft-lora": _peft(peft_lora),
        "peft-dora": _peft(peft_lora, use_dora=True),
        "peft-loha": _peft(peft_loha),
        "lycoris-lokr-head": _lycoris(targets=LLAMA_HEAD_TARGETS),
        "lycoris-lokr-full": _lycoris(full_matrix=True, alpha=64.0),
        "lycoris-lokr-dora-in": _lycoris(dora_wd=True, wd_on_output=False),
    },
)

_GPT2_LORA = {"target_modules": GPT2_TARGETS, "fan_in_fan_out": True}

GPT2 = Architecture(
    name="gpt2",
    make_model=tiny_gpt2,
    patterns=("*.attn.*", "*h.1.*"),
    adapters={
        "peft-lora": _peft(peft_lora, **_GPT2_LORA),
        "peft-dora": _peft(peft_lora, use_dora=True, **_GPT2_LORA),
        "lycoris-lokr": _conv1d(rank=4),
        "lycoris-lokr-full": _conv1d(rank=None),
    },
)

ARCHITECTURES = (LLAMA, GPT2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterFile:
    """One version of an adapter: where it lies, and the change that its trainer makes."""

    adapter_id: str
    source: str  # relative to the adapter folder
    deltas: Mapping[str, Tensor]  # by parameter name, at weight 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPart:
    """One adapter of a mix as the peer applies it."""

    file: AdapterFile
    asked: AdapterWeight

    def weight_at(self, path: str) -> float:
        """Return the weight of a module, which a pattern may set."""
        for pattern, weight in self.asked.module_weights:
            if fnmatch.fnmatchcase(path, pattern):
                return weight
        return self.asked.weight


class Peers:
    """The models that the trainers make of one architecture's base."""

    def __init__(self, architecture: Architecture, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self._model = architecture.make_model(dtype)
        self._base = {name: p.detach().clone() for name, p in self._model.named_parameters()}
        self.files: dict[str, list[AdapterFile]] = {}
        for index, (adapter_id, write) in enumerate(architecture.adapters.items()):
            self.files[adapter_id] = []
            for version in range(NUM_VERSIONS):
                stem = folder / f"{adapter_id}-v{version}"
                seed = 100 * version + index
                written = write(partial(architecture.make_model, torch.float32), stem, seed)
                file = AdapterFile(
                    adapter_id=adapter_id,
                    source=str(written.path.relative_to(folder)),
                    deltas=self._deltas(written.merged(dtype)),
                )
                self.files[adapter_id].append(file)

    def _deltas(self, merged: PreTrainedModel) -> dict[str, Tensor]:
        found = {name: p.detach() for name, p in merged.named_parameters()}
        assert found.keys() == self._base.keys(), "a trainer's model has other parameters"
        deltas = {name: found[name] - weight for name, weight in self._base.items()}
        return {name: delta for name, delta in deltas.items() if delta.any()}

    @torch.no_grad()
    def model(self, parts: Sequence[PeerPart]) -> PreTrainedModel:
        """Return the merged model of a mix; valid until the next call."""
        for name, parameter in self._model.named_parameters():
            weight = self._base[name].clone()
            for part in parts:
                if name in part.file.deltas:
                    path = name.removesuffix(".weight")
                    weight += part.weight_at(path) * part.file.deltas[name]
            parameter.copy_(weight)
        return self._model

    @torch.no_grad()
    def logits(self, parts: Sequence[PeerPart], token_ids: Sequence[int]) -> Tensor:
        """Return the logits after each token, [tokens, V], of a plain forward of one sequence."""
        out: Tensor = self.model(parts)(torch.tensor([token_ids])).logits
        return out[0]

"""PEFT: the adapters that it makes, and its own way of serving them."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import peft
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.models import Decoder, twin_of

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FACTOR = 8


class PeftPeer:
    """One model with many LoKr adapters, of which PEFT applies the one that is set."""

    def __init__(self, model: LlamaForCausalLM, ranks: Sequence[int]) -> None:
        """Put one adapter of each rank on a twin of the model, all factors random."""
        self.names = [f"adapter-{index:03}" for index in range(len(ranks))]
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self._model = peft.PeftModel(twin_of(model), _config(ranks[0]), self.names[0])
            for name, rank in zip(self.names[1:], ranks[1:], strict=True):
                self._model.add_adapter(name, _config(rank))

    def save(self, folder: Path) -> list[Path]:
        """Write every adapter and return their folders."""
        with quiet():
            self._model.save_pretrained(str(folder))
        return [folder / name for name in self.names]

    def decoders(self, prompts: Tensor) -> Iterator[Decoder]:
        """Yield a decoder of one row for each prompt, made with the adapter of its place."""
        for name, prompt in zip(self.names, prompts, strict=False):
            self._model.set_adapter(name)
            yield Decoder(self._model, prompt[None])

    def step(self, decoders: Sequence[Decoder]) -> Tensor:
        """Decode row by row, switching the adapter for each."""
        rows = []
        for name, decoder in zip(self.names, decoders, strict=False):
            self._model.set_adapter(name)
            rows.append(decoder.step())
        return torch.cat(rows)


def _config(rank: int) -> peft.LoKrConfig:
    return peft.LoKrConfig(
        r=rank,
        alpha=8,
        decompose_factor=FACTOR,
        target_modules=TARGETS,
        init_weights=False,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PEFT's warnings about models without a folder out of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

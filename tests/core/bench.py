"""An attached base with adapters of every form, and the answers that it should give."""

import random

import torch
from torch import Tensor

from lokr_core import Adapted, Adapter, AdapterMix, attach
from lokr_core.adapted import ApplyWord
from tests.core.factors import FORMS, make_base, random_adapter

BASE = AdapterMix()


class Bench:
    """An attached base, and adapters of every form on it."""

    def __init__(self, dtype: torch.dtype = torch.float64, **options: int) -> None:
        self.model = make_base(dtype)
        self.adapted: Adapted = attach(self.model, **options)
        self.adapters = {
            f"{form} {rank}": random_adapter(
                self.adapted.spec, f"a{n}-{rank}", form, seed=n * 50 + rank, rank=rank
            )
            for n, form in enumerate(FORMS)
            for rank in (1, 3)
        }
        for adapter in self.adapters.values():
            self.adapted.add(adapter)

    def __getitem__(self, form: str) -> Adapter:
        """Return an adapter by form and rank."""
        return self.adapters[form]

    def run(self, x: Tensor, *mixes: AdapterMix, apply: ApplyWord = "unmerged") -> Tensor:
        """Return the model's output for one mix for each row, or one for all."""
        with self.adapted.using(mixes[0] if len(mixes) == 1 else mixes, apply):
            out: Tensor = self.model(x)
        return out

    def oracle(self, x: Tensor, mix: AdapterMix) -> Tensor:
        """Return the output of a copy whose weights are those of the mix."""
        copy = make_base(self.model.first.weight.dtype)
        for part in mix.parts:
            adapter = next(a for a in self.adapters.values() if a.ref == part.ref)
            for name, change in adapter.delta_weights().items():
                path = name.removesuffix(".weight")
                factor = dict(part.module_weights).get(path, part.weight)
                parameter = copy.get_parameter(name)
                parameter.copy_(parameter + factor * change)
        out: Tensor = copy(x)
        return out

    def random_mix(self, draws: random.Random) -> AdapterMix:
        """Return a mix of none to three adapters, with negative weights and patterns."""
        chosen = draws.sample(list(self.adapters.values()), draws.randint(0, 3))
        patterned = [a for a in chosen if draws.random() < 0.3]
        return AdapterMix.of(
            {a: draws.choice([1.0, 0.5, -0.7, 2.0]) for a in chosen},
            {a: {"second": draws.choice([0.0, -1.5])} for a in patterned},
        )

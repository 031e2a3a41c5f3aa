"""A base of several dtypes: changes are computed in the widest, and a module keeps its own."""

import pytest
import torch
from torch import Tensor, nn

from lokr_core import Adapted, Adapter, AdapterMix, attach
from lokr_core.adapted import ApplyWord
from lokr_core.weights import DenseWeights, ModuleWeights, Replacement, Term
from tests.core.factors import FORMS, build_adapter, draw, random_module

KINDS = [*FORMS, "no factors", "replaced"]


class Mixed(nn.Module):
    """A linear layer in float64 among layers of every kind in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.norm = nn.LayerNorm(12)
        self.wide = nn.Linear(12, 20, dtype=torch.float64)
        self.narrow = nn.Linear(20, 15)
        self.conv = nn.Conv1d(15, 6, 3, padding=1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [N, 6, L] for ids [N, L]."""
        hidden = self.wide(self.norm(self.table(ids)).to(self.wide.weight.dtype))
        narrow = self.narrow(torch.tanh(hidden).to(self.narrow.weight.dtype))
        out: Tensor = self.conv(torch.tanh(narrow).mT)
        return out


def mixed() -> Mixed:
    """Return the base with parameters drawn once and for all."""
    model = Mixed().requires_grad_(False).eval()
    for seed, parameter in enumerate(model.parameters()):
        parameter.copy_(draw(*parameter.shape, seed=seed) / 3)
    return model


def adapter_of(kind: str, adapted: Adapted) -> Adapter:
    """Return an adapter of every module; the linear ones have all forms, and the others most."""
    spec = adapted.spec
    modules = {"norm": ModuleWeights(vector=draw(12, seed=1), bias=draw(12, seed=2))}
    for seed, path in enumerate(("table", "wide", "narrow", "conv")):
        weight = spec.modules[path].weight.double()
        if kind == "replaced":
            whole = draw(*weight.shape, seed=40 + seed)
            modules[path] = ModuleWeights(replacement=Replacement(weight=whole))
        elif kind == "no factors":
            dense = DenseWeights(matrix=draw(*weight.shape, seed=40 + seed), scale=0.5)
            modules[path] = ModuleWeights(terms=(Term(delta=dense),))
        else:
            form = kind if spec.modules[path].kind.is_linear else kind.replace("dora input", "full")
            modules[path] = random_module(weight, form, seed=40 + seed)
    return build_adapter(spec, "a", modules)


def oracle(ids: Tensor, adapter: Adapter, weight: float) -> Tensor:
    """Return the output of dense weights, all in float64."""
    copy = mixed().double()
    for name, change in adapter.delta_weights().items():
        parameter = copy.get_parameter(name)
        parameter.copy_(parameter + weight * change)
    out: Tensor = copy(ids)
    return out


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_narrower_modules_carry_changes_of_the_widest(kind: str, apply: ApplyWord) -> None:
    """Factors lie in one bank, so in one dtype, and products of two dtypes do not exist."""
    model = mixed()
    adapted = attach(model)
    adapter = adapter_of(kind, adapted)
    adapted.add(adapter)
    ids = torch.arange(15).view(3, 5)
    plain = model(ids)
    weights = (0.5, 0.0, -0.7)

    with adapted.using([AdapterMix.of({adapter: weight}) for weight in weights], apply=apply):
        found = model(ids)

    assert found.dtype == torch.float32
    assert torch.equal(found[1], plain[1])
    for index, weight in enumerate(weights):
        wanted = oracle(ids[index : index + 1], adapter, weight)
        torch.testing.assert_close(
            found[index : index + 1].double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std())
        )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_one_adapter_of_every_row_is_applied_in_every_dtype(kind: str) -> None:
    """Rows of one adapter alone, in order, have a way of their own."""
    model = mixed()
    adapted = attach(model)
    adapter = adapter_of(kind, adapted)
    adapted.add(adapter)
    ids = torch.arange(10).view(2, 5)

    with adapted.using(AdapterMix.of({adapter: 0.5}), apply="unmerged"):
        found = model(ids)

    torch.testing.assert_close(found.double(), oracle(ids, adapter, 0.5), rtol=1e-4, atol=1e-4)

"""Costs are counted from shapes, by hand here."""

from collections.abc import Mapping

import pytest
from torch import nn

from lokr_core import Adapter, AdapterMix, MixCost, attach
from lokr_core.weights import (
    DenseWeights,
    FullFactor,
    LokrWeights,
    ModuleWeights,
    Replacement,
    Term,
    TuckerFactor,
)
from tests.core.factors import (
    build_adapter,
    draw,
    low_rank,
    make_base,
    random_adapter,
    random_factor,
    random_module,
)
from tests.core.layers.subjects import Host

BASE_MACS = 12 * 20 + 20 * 15 + 15 * 6


def cost(*forms: str) -> MixCost:
    """Return the cost of a mix of adapters of rank 2 on the module of 20 inputs, 15 outputs."""
    adapted = attach(make_base())
    adapters = [
        random_adapter(adapted.spec, f"a{n}", form, paths=("second",))
        for n, form in enumerate(forms)
    ]
    for adapter in adapters:
        adapted.add(adapter)
    return adapted.cost(AdapterMix.of(dict.fromkeys(adapters, 1.0)))


def test_the_base_costs_nothing_more() -> None:
    """A row of the base goes through its linear layers alone."""
    assert cost() == MixCost(base_macs=BASE_MACS, unmerged_macs=0, merge_macs=0, merged_bytes=0)


# w1 is 3 x 2 and w2 5 x 10, of rank 2: b is 2 x 10, a is 5 x 2.
LOW_RANK_ROW = 2 * 20 + 3 * 4 + 3 * 10  # 2 rows by b, then w1 on 2 columns, then a


@pytest.mark.parametrize(
    ("form", "row", "merge"),
    [
        ("full", min(3 * 2 * 10 + 3 * 50, 2 * 50 + 3 * 2 * 5), 300),
        ("low rank w2", LOW_RANK_ROW, 5 * 10 * 2 + 300),
        ("lora", 2 * 20 + 2 + 15 * 2, 15 * 20 * 2 + 300),
        ("hadamard", 2 * 300 * 2 + 300 + 300, 2 * 300 * 2 + 300),
        ("dora output", LOW_RANK_ROW + 15, 5 * 10 * 2 + 300),
        ("dora input", LOW_RANK_ROW + 15 + 300, 5 * 10 * 2 + 300),
    ],
)
def test_each_form_is_counted(form: str, row: int, merge: int) -> None:
    """The way of application is chosen by these figures."""
    counted = cost(form)

    assert counted.base_macs == BASE_MACS
    assert counted.merged_bytes == 15 * 20 * 8
    assert counted.unmerged_macs == row
    assert counted.merge_macs == merge


def test_a_mix_costs_the_sum_of_its_parts() -> None:
    """Merging writes each weight once, however many parts change it."""
    one, other, both = cost("full"), cost("low rank w2"), cost("full", "low rank w2")

    assert both.unmerged_macs == one.unmerged_macs + other.unmerged_macs
    assert both.merge_macs == one.merge_macs + other.merge_macs
    assert both.merged_bytes == one.merged_bytes


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_merged_bytes_are_those_of_the_merged_parameters(weight: float) -> None:
    """The merge cache is asked for room by this figure: biases and other shapes count too."""
    adapted = attach(make_base())
    modules = {
        "first": ModuleWeights(bias=draw(20, seed=0)),
        "second": random_module(make_base().second.weight, "full", 1),
        "head": ModuleWeights(
            replacement=Replacement(weight=draw(3, 15, seed=2), bias=draw(3, seed=3))
        ),
    }
    one, other = (
        build_adapter(adapted.spec, name, {path: modules[path] for path in paths})
        for name, paths in (("a", ("first", "second", "head")), ("b", ("first", "second")))
    )
    adapted.add(one)
    adapted.add(other)
    mix = AdapterMix.of({one: 1.0, other: 0.5}, {one: {"head": weight}})

    assert adapted.cost(mix).merged_bytes == adapted.merge(mix).num_bytes


def test_adapters_of_one_layout_cost_the_same() -> None:
    """Costs are counted once for each layout."""
    adapted = attach(make_base())
    weight = make_base().second.weight
    adapters = [
        build_adapter(adapted.spec, f"a{seed}", {"second": random_module(weight, "full", seed)})
        for seed in (1, 2)
    ]
    for adapter in adapters:
        adapted.add(adapter)

    first, second = (adapted.cost(AdapterMix.of({adapter: 1.0})) for adapter in adapters)

    assert first == second


def test_counts_are_remembered_for_the_layouts_used_of_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters come and go for months, each perhaps of its own shape; memory must not grow."""
    adapted = attach(make_base())
    forms = ("full", "low rank w2", "lora")
    adapters = [
        random_adapter(adapted.spec, f"a{n}", form, paths=("second",))
        for n, form in enumerate(forms)
    ]
    for adapter in adapters:
        adapted.add(adapter)
    counted: list[Adapter] = []
    modules = Adapter.modules

    def note(adapter: Adapter) -> Mapping[str, ModuleWeights]:
        counted.append(adapter)
        return modules(adapter)

    monkeypatch.setattr(Adapter, "modules", note)
    monkeypatch.setattr("lokr_core.cost.MAX_LAYOUTS", 2)
    first, second, third = adapters
    for adapter in (first, second, first, third, first, second):
        adapted.cost(AdapterMix.of({adapter: 1.0}))

    assert counted == [first, second, third, second]


def change_macs(layer: nn.Module, weights: ModuleWeights) -> int:
    """Return the operations that a change adds to one row of a layer."""
    host = Host(layer).double()
    adapted = attach(host)
    adapter = build_adapter(adapted.spec, "a", {"layer": weights})
    adapted.add(adapter)
    return adapted.cost(AdapterMix.of({adapter: 1.0})).unmerged_macs


ONE = FullFactor(matrix=draw(1, 1, seed=0))
LORA = ModuleWeights.of(LokrWeights(w1=ONE, w2=low_rank(8, 6 * 9, 2, 1), scale=1.0))
TUCKER = TuckerFactor(core=draw(2, 3, 9, seed=1), a=draw(2, 8, seed=2), b=draw(3, 6, seed=3))
BLOCKS = LokrWeights(w1=random_factor(4, 3, None, 1), w2=random_factor(2, 9, None, 2), scale=1.0)
DENSE = DenseWeights(matrix=draw(8, 3 * 9, seed=1), scale=1.0)


@pytest.mark.parametrize(
    ("layer", "weights", "macs"),
    [
        (nn.Conv2d(6, 8, 3), LORA, 2 * 6 * 9 + 2 + 2 * 8),
        (nn.Conv2d(6, 8, 3, stride=2), LORA, 2 * 6 * 9 + 2 + 2 * 8),
        (
            nn.Conv2d(6, 8, 3, stride=2),
            ModuleWeights.of(LokrWeights(w1=ONE, w2=TUCKER, scale=1.0)),
            4 * 6 * 3 + 3 * 2 * 9 + 2 + 2 * 8,
        ),
        # Two groups of 3 channels, and 2 of the 4 rows of w1 each; w2 is 2 by (1, 9).
        (nn.Conv2d(6, 8, 3, groups=2), ModuleWeights.of(BLOCKS), 2 * (2 * 3 + 2 * 9 * 2)),
        (nn.Conv2d(6, 8, 3, groups=2), ModuleWeights(terms=(Term(delta=DENSE),)), 8 * 3 * 9),
        (
            nn.Conv2d(6, 8, 3, groups=2),
            ModuleWeights(replacement=Replacement(weight=DENSE.matrix)),
            8 * 3 * 9,
        ),
        (
            nn.Embedding(8, 6),
            ModuleWeights.of(LokrWeights(w1=ONE, w2=low_rank(8, 6, 2, 1), scale=1.0)),
            6 * 2 + 6,
        ),
        (
            nn.Embedding(8, 6),
            ModuleWeights.of(DenseWeights(matrix=draw(8, 6, seed=1), scale=1.0)),
            6,
        ),
        (nn.LayerNorm(4), ModuleWeights(vector=draw(4, seed=1), bias=draw(4, seed=2)), 8),
        (nn.Conv1d(6, 8, 1), ModuleWeights(bias=draw(8, seed=2)), 8),
    ],
)
def test_each_kind_is_counted(layer: nn.Module, weights: ModuleWeights, macs: int) -> None:
    """A row of a convolution is an output position; of a table only one row is formed."""
    assert change_macs(layer, weights) == macs


def test_forming_a_tucker_form_is_counted() -> None:
    """Merging forms the delta once, kernel included."""
    adapted = attach(Host(nn.Conv2d(6, 8, 3)).double())
    weights = ModuleWeights.of(LokrWeights(w1=ONE, w2=TUCKER, scale=1.0))
    adapter = build_adapter(adapted.spec, "a", {"layer": weights})
    adapted.add(adapter)

    cost = adapted.cost(AdapterMix.of({adapter: 1.0}))

    assert cost.merge_macs == 2 * 8 * 3 * 9 + 8 * 3 * 9 * 6 + 8 * 6 * 9
    assert cost.base_macs == 8 * 6 * 9 + 2 * 2
    assert cost.merged_bytes == 8 * 6 * 9 * 8

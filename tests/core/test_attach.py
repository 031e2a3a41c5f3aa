"""A model is attached once, given back as it was, and applies only what was added to it."""

import pytest
import torch
from torch import Tensor, nn

from lokr_core import (
    Adapted,
    AdapterInUseError,
    AdapterMix,
    AdapterNotAddedError,
    LokrError,
    MergeBudgetError,
    MixError,
    RoutingError,
    attach,
)
from lokr_core.weights import ModuleWeights, Replacement
from tests.core.bench import BASE, Bench
from tests.core.factors import assert_close, build_adapter, draw, make_base, random_adapter


def test_detach_gives_the_model_back() -> None:
    """Nothing of ours stays on the modules."""
    model = make_base()
    names = [name for name, _ in model.named_modules()]
    state = list(model.state_dict())
    adapted = attach(model)
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == state
    assert isinstance(model.first, nn.Linear)

    adapted.detach()
    adapted.detach()

    assert all("forward" not in vars(module) for module in model.modules())
    assert isinstance(attach(model), Adapted)


def test_detach_restores_a_forward_that_was_set_before() -> None:
    """Other libraries set a module's forward too."""
    model = make_base()
    original = model.first.forward

    def doubled(x: Tensor) -> Tensor:
        return 2 * original(x)

    model.first.__dict__["forward"] = doubled
    x = draw(2, 12, seed=0)
    before = model(x)

    adapted = attach(model)

    assert torch.equal(model(x), before)
    adapted.detach()
    assert vars(model.first)["forward"] is doubled


def test_a_detached_model_applies_no_mix() -> None:
    """It would give the base's answer under an adapter's name."""
    bench = Bench()
    bench.adapted.detach()

    with pytest.raises(LokrError, match="detached"), bench.adapted.using(BASE):
        pass
    with pytest.raises(LokrError, match="detached"), bench.adapted.route([]):
        pass


def test_a_model_is_attached_once() -> None:
    """Two owners would each add their own deltas."""
    model = make_base()
    attach(model)

    with pytest.raises(LokrError, match="module 'first' is attached already; detach it first"):
        attach(model)


def test_an_adapter_of_another_model_is_refused() -> None:
    """Its gains and layouts belong to other weights."""
    other = random_adapter(attach(make_base()).spec, "a")

    with pytest.raises(LokrError, match="adapter 'a' was read for another model"):
        attach(make_base()).add(other)


def test_what_cannot_be_applied_cannot_be_merged() -> None:
    """A part that has no place in a sum would be left out of it without a word."""
    adapted = attach(make_base())
    head = ModuleWeights(replacement=Replacement(weight=draw(3, 15, seed=0)))
    adapter = build_adapter(adapted.spec, "three", {"head": head})
    adapted.add(adapter)

    with pytest.raises(MixError, match=r"three: replaces 'head' .* at weight 1, not 0.5"):
        adapted.merge(AdapterMix.of({adapter: 0.5}))


def test_adapters_come_and_go_by_ref() -> None:
    """Adding twice is no error, using what is gone is, and what is in use stays."""
    bench = Bench()
    adapter = bench["full 1"]
    mix = AdapterMix.of({adapter: 1.0})
    bench.adapted.add(adapter)

    with bench.adapted.using(mix), pytest.raises(AdapterInUseError, match="is in use"):
        bench.adapted.remove(adapter.ref)
    bench.adapted.remove(adapter.ref)

    for act in (
        lambda: bench.adapted.remove(adapter.ref),
        lambda: bench.adapted.check(mix),
        lambda: bench.adapted.cost(mix),
        lambda: bench.adapted.merge(mix),
        lambda: bench.run(draw(1, 12, seed=0), mix),
    ):
        with pytest.raises(AdapterNotAddedError, match=f"{adapter.ref.adapter_id!r}.*not added"):
            act()


def test_removing_an_adapter_drops_its_merged_weights() -> None:
    """Unloading frees everything that was made of the adapter."""
    bench = Bench()
    adapter = bench["full 1"]
    mix = AdapterMix.of({adapter: 1.0})
    bench.run(draw(1, 12, seed=0), mix, apply="merged")
    assert bench.adapted.merges.num_bytes > 0

    bench.adapted.remove(adapter.ref)

    assert mix not in bench.adapted.merges
    assert bench.adapted.merges.num_bytes == 0


def test_a_merge_that_has_no_room_is_refused() -> None:
    """A pinned merge never becomes something else in silence."""
    bench = Bench(merge_cache_bytes=100)
    mix = AdapterMix.of({bench["full 1"]: 1.0})

    with pytest.raises(MergeBudgetError, match="serve it unmerged"):
        bench.run(draw(1, 12, seed=0), mix, apply="merged")


def test_patterns_must_match_and_agree() -> None:
    """A pattern with a typing error would be passed over without a word."""
    bench = Bench()
    adapter = bench["full 1"]
    nothing = AdapterMix.of({adapter: 1.0}, {adapter: {"*.attention": 0.5}})
    apart = AdapterMix.of({adapter: 1.0}, {adapter: {"s*": 0.5, "*d": 0.25}})
    together = AdapterMix.of({adapter: 1.0}, {adapter: {"s*": 0.5, "second": 0.5}})

    with pytest.raises(MixError, match=r"module_weights\['\*.attention'\]: matches no module"):
        bench.adapted.check(nothing)
    with pytest.raises(MixError, match=r"'s\*'\]: gives 'second' weight 0.5, but '\*d' gives it"):
        bench.run(draw(1, 12, seed=0), apart)
    bench.adapted.check(together)


def test_contexts_nest() -> None:
    """The inner context is in force inside, the outer again after it."""
    bench = Bench()
    outer = AdapterMix.of({bench["full 1"]: 1.0})
    inner = AdapterMix.of({bench["low rank w2 1"]: 1.0})
    x = draw(2, 12, seed=0)

    with bench.adapted.using(outer, apply="unmerged"):
        before = bench.model(x)
        within = bench.run(x, inner)
        after = bench.model(x)

    assert_close(within, bench.oracle(x, inner))
    assert_close(before, bench.oracle(x, outer))
    assert torch.equal(before, after)


def test_no_mix_at_all_is_refused() -> None:
    """An empty list says nothing of any row."""
    with pytest.raises(RoutingError, match="no mix was given"), Bench().adapted.using([]):
        pass

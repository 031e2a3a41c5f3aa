"""Modules that adapters replace: rows of their own, and mixes that cannot be."""

import pytest
import torch
from torch import Tensor, nn

from lokr_core import Adapted, Adapter, AdapterMix, Apply, MixError, RoutingError, RowSpan, attach
from lokr_core.adapted import ApplyWord
from lokr_core.weights import LokrWeights, ModuleWeights, Replacement
from tests.core.factors import Base, assert_close, build_adapter, draw, low_rank, make_base
from tests.core.layers.subjects import Host

HEAD = "head"


def labels(count: int, seed: int) -> ModuleWeights:
    """Return a head with its own labels."""
    weight = draw(count, 15, seed=seed)
    return ModuleWeights(replacement=Replacement(weight=weight, bias=draw(count, seed=seed + 1)))


def low_rank_head() -> ModuleWeights:
    """Return a low-rank change of the head."""
    one = low_rank(1, 1, 1, 0)
    return ModuleWeights.of(LokrWeights(w1=one, w2=low_rank(6, 15, 2, 5), scale=1.0))


class Bench:
    """A base whose head is replaced by adapters in several ways."""

    def __init__(self) -> None:
        self.model: Base = make_base()
        self.adapted: Adapted = attach(self.model)
        self.three, self.other_three = self.add("three", labels(3, 1)), self.add("x", labels(3, 2))
        self.four = self.add("four", labels(4, 3))
        self.six, self.other_six = self.add("six", labels(6, 4)), self.add("y", labels(6, 5))
        self.change = self.add("change", low_rank_head())

    def add(self, adapter_id: str, weights: ModuleWeights) -> Adapter:
        """Add an adapter of the head."""
        adapter = build_adapter(self.adapted.spec, adapter_id, {HEAD: weights})
        self.adapted.add(adapter)
        return adapter

    def run(self, x: Tensor, *mixes: AdapterMix, apply: ApplyWord = "unmerged") -> Tensor:
        """Return the head's output."""
        with self.adapted.using(list(mixes), apply):
            out: Tensor = self.model.head(x)
        return out


def alone(adapter: Adapter, weight: float = 1.0) -> AdapterMix:
    """Return the mix of one adapter."""
    return AdapterMix.of({adapter: weight})


def own(adapter: Adapter, x: Tensor) -> Tensor:
    """Return what the replaced head alone gives."""
    replaced = adapter.module(HEAD).replacement
    assert replaced is not None
    assert replaced.weight is not None
    return nn.functional.linear(x, replaced.weight, replaced.bias)


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_a_head_with_its_own_labels_gives_its_own_size(apply: ApplyWord) -> None:
    """A classifier's labels are part of its adapter; its rows come out as wide as they are."""
    bench, x = Bench(), draw(4, 2, 15, seed=0)
    mixes = [alone(bench.three), alone(bench.other_three)] * 2

    found = bench.run(x, *mixes, apply=apply)
    single = bench.run(x, *[alone(bench.three)] * 4, apply=apply)

    assert torch.equal(single, own(bench.three, x))
    assert found.shape == (4, 2, 3)
    assert_close(found[::2], own(bench.three, x[::2]))
    assert_close(found[1::2], own(bench.other_three, x[1::2]))


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_a_replaced_module_of_equal_size_is_exactly_itself(apply: ApplyWord) -> None:
    """At weight 1 and alone nothing is added to the base and taken away again."""
    bench, x = Bench(), draw(4, 15, seed=0)
    plain = bench.model.head(x)
    mixes = [alone(bench.six), AdapterMix(), alone(bench.other_six), alone(bench.six, 0.5)]

    found = bench.run(x, *mixes, apply=apply)

    assert_close(found[0], own(bench.six, x[:1])[0])
    assert torch.equal(found[1], plain[1])
    assert_close(found[2], own(bench.other_six, x[2:3])[0])
    assert_close(found[3], 0.5 * plain[3] + 0.5 * own(bench.six, x[3:])[0])


def test_a_replaced_module_may_be_changed_by_others() -> None:
    """A mix is the base plus the weighted differences, a replacement's among them."""
    bench, x = Bench(), draw(2, 15, seed=0)
    mix = AdapterMix.of({bench.six: 1.0, bench.change: -0.5})

    unmerged = bench.run(x, mix, alone(bench.six))
    merged = bench.run(x, mix, alone(bench.six), apply="merged")

    added = -0.5 * x @ bench.change.delta_weights()["head.weight"].mT
    assert_close(unmerged[0], own(bench.six, x)[0] + added[0])
    assert_close(merged, unmerged)


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_rows_of_different_sizes_do_not_share_a_forward(apply: ApplyWord) -> None:
    """One tensor has one width; the error names the module and the sizes."""
    bench, x = Bench(), draw(2, 15, seed=0)

    with pytest.raises(RoutingError, match=r"module 'head' .* different sizes, 3 and 6"):
        bench.run(x, alone(bench.three), AdapterMix(), apply=apply)
    with pytest.raises(RoutingError, match=r"module 'head' .* different sizes, 3 and 4"):
        bench.run(x, alone(bench.three), alone(bench.four), apply=apply)


def test_what_two_adapters_replace_is_no_mix() -> None:
    """Each stands for the whole module; there is no sum of both."""
    bench = Bench()

    with pytest.raises(MixError, match="six: replaces 'head', which 'y' replaces too"):
        bench.adapted.check(AdapterMix.of({bench.six: 1.0, bench.other_six: 1.0}))
    bench.adapted.check(
        AdapterMix.of({bench.six: 1.0, bench.other_six: 1.0}, {bench.six: {HEAD: 0.0}})
    )


def test_a_module_of_another_size_is_applied_alone_and_whole() -> None:
    """Half of it, or a sum with the base, has no shape."""
    bench = Bench()

    with pytest.raises(MixError, match=r"three: replaces 'head' .* at weight 1, not 0.5"):
        bench.adapted.check(alone(bench.three, 0.5))
    with pytest.raises(MixError, match=r"three: .* 'change' changes it too"):
        bench.adapted.check(AdapterMix.of({bench.three: 1.0, bench.change: 1.0}))
    bench.adapted.check(AdapterMix.of({bench.three: 1.0}, {bench.three: {HEAD: 0.0}}))


def test_a_mix_that_was_not_checked_is_refused_by_the_forward() -> None:
    """Whoever drives packed tokens has checked the mix before; nothing is guessed if not."""
    bench = Bench()
    spans = [RowSpan(mix=alone(bench.three, 0.5), apply=Apply.UNMERGED, num_rows=2)]

    with bench.adapted.route(spans), pytest.raises(MixError, match="alone, at weight 1"):
        bench.model.head(draw(2, 15, seed=0))


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_weight_0_on_a_replaced_module_is_the_base(apply: ApplyWord) -> None:
    """Off is off, even where the module could not be weighted."""
    bench, x = Bench(), draw(2, 15, seed=0)
    off = AdapterMix.of({bench.three: 1.0}, {bench.three: {HEAD: 0.0}})

    assert torch.equal(bench.run(x, off, off, apply=apply), bench.model.head(x))


def test_the_head_of_packed_tokens_may_be_replaced() -> None:
    """The rows that emit are fewer than the tokens, and have the head's own size."""
    bench, x = Bench(), draw(5, 12, seed=0)
    spans = [RowSpan(mix=alone(bench.three), apply=Apply.UNMERGED, num_rows=5)]
    head = [RowSpan(mix=alone(bench.three), apply=Apply.UNMERGED, num_rows=1)]
    hidden = draw(1, 15, seed=1)

    with bench.adapted.route(spans, (HEAD, head)):
        bench.model.first(x)
        found = bench.model.head(hidden)

    assert torch.equal(found, own(bench.three, hidden))


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_a_table_of_more_tokens_serves_its_own_ids(apply: ApplyWord) -> None:
    """An adapter with added tokens brings their rows; the base's table knows none of them."""
    host = Host(nn.Embedding(5, 4)).double().requires_grad_(False)
    adapted = attach(host)
    table = draw(7, 4, seed=1)
    module = ModuleWeights(replacement=Replacement(weight=table))
    adapter = build_adapter(adapted.spec, "a", {"layer": module})
    adapted.add(adapter)
    ids = torch.tensor([[6, 1], [4, 0]])

    with adapted.using([alone(adapter), AdapterMix()], apply):
        found = host(ids)

    assert torch.equal(found[0], table[ids[0]])
    assert torch.equal(found[1], host(ids[1]))


def test_a_table_of_more_tokens_leaves_other_tables_their_own_ids() -> None:
    """An adapter's rows are padded with none of another's, whose ids it may not know."""
    host = Host(nn.Embedding(5, 4)).double().requires_grad_(False)
    adapted = attach(host)
    tables = [draw(rows, 4, seed=rows) for rows in (7, 5)] + [draw(5, 4, seed=1)]
    larger, one, other = (
        build_adapter(
            adapted.spec, name, {"layer": ModuleWeights(replacement=Replacement(weight=table))}
        )
        for name, table in zip("abc", tables, strict=True)
    )
    for adapter in (larger, one, other):
        adapted.add(adapter)
    ids = torch.tensor([6, 1, 2])

    with adapted.using([alone(larger), alone(one), alone(other, 0.5)], "unmerged"):
        found = host(ids)

    assert torch.equal(found[:2], torch.stack((tables[0][6], tables[1][1])))
    assert_close(found[2], 0.5 * host(ids[2]) + 0.5 * tables[2][2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_replaced_weights_wider_than_the_base_keep_their_precision(dtype: torch.dtype) -> None:
    """A head that was trained in float32 is computed in it, and rounded once."""
    model = make_base(torch.bfloat16)
    adapted = attach(model)
    weight = draw(6, 15, seed=1, dtype=dtype)
    module = ModuleWeights(replacement=Replacement(weight=weight))
    adapter = build_adapter(adapted.spec, "a", {HEAD: module})
    adapted.add(adapter)
    x = draw(3, 15, seed=2, dtype=torch.bfloat16)

    with adapted.using(alone(adapter), "unmerged"):
        found = model.head(x)

    assert found.dtype == torch.bfloat16
    assert torch.equal(found, nn.functional.linear(x.to(dtype), weight).to(torch.bfloat16))


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_replaced_rows_alone_have_the_dtype_of_the_base_under_autocast(apply: ApplyWord) -> None:
    """What else is in the batch must not show in the answer, its dtype included."""
    model = make_base(torch.float32)
    adapted = attach(model)
    weight = draw(6, 15, seed=1, dtype=torch.float32)
    module = ModuleWeights(replacement=Replacement(weight=weight))
    adapter = build_adapter(adapted.spec, "a", {HEAD: module})
    adapted.add(adapter)
    x = draw(2, 15, seed=2, dtype=torch.float32)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with adapted.using(alone(adapter), apply):
            all_rows = model.head(x)
        with adapted.using([alone(adapter), AdapterMix()], apply):
            one_row = model.head(x)

    assert all_rows.dtype == one_row.dtype == torch.bfloat16
    assert torch.equal(all_rows[0], one_row[0])

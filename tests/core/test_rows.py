"""Each row of a batch gets what its own mix says, bit for bit where that is the base."""

import hashlib
import random

import pytest
import torch
from torch import Tensor, nn

from lokr_core import AdapterMix, MergeBudgetError, attach
from lokr_core.adapted import ApplyWord
from tests.core.bench import BASE, Bench
from tests.core.factors import FORMS, assert_close, draw, make_base, random_adapter


def weights_hash(model: nn.Module) -> str:
    """Return a hash over the bytes of every parameter."""
    content = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        content.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_both_ways_give_what_the_adapted_weights_give(form: str, apply: ApplyWord) -> None:
    """Whoever chooses the way of application does not choose the answer."""
    bench = Bench()
    mix = AdapterMix.of({bench[f"{form} 3"]: -0.7})
    x = draw(4, 12, seed=0)

    assert_close(bench.run(x, mix, apply=apply), bench.oracle(x, mix))


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_one_batch_carry_any_mixes(seed: int) -> None:
    """Layouts, ranks, forms and weights meet in one batch, and each row gets its own mix."""
    bench = Bench()
    draws = random.Random(seed)
    mixes = [bench.random_mix(draws) for _ in range(9)]
    mixes += draws.sample(mixes, 3)
    x = draw(12, 2, 12, seed=seed)

    found = bench.run(x, *mixes)

    wanted = torch.stack([bench.oracle(row, mix) for row, mix in zip(x, mixes, strict=True)])
    assert_close(found, wanted)


def test_merged_and_unmerged_rows_meet_in_one_batch() -> None:
    """Auto applies merged what is merged already, beside rows that are not."""
    bench = Bench()
    merged = AdapterMix.of({bench["full 1"]: 1.0, bench["dora input 1"]: 0.5})
    other = AdapterMix.of({bench["full 1"]: -0.5, bench["hadamard 3"]: 1.0})
    bench.run(draw(1, 12, seed=0), merged, apply="merged")
    mixes = [merged, other, BASE, merged]
    x = draw(4, 12, seed=1)

    found = bench.run(x, *mixes, apply="auto")

    wanted = torch.stack([bench.oracle(row, mix) for row, mix in zip(x, mixes, strict=True)])
    assert_close(found, wanted)
    assert other not in bench.adapted.merges


def test_skewed_groups_and_shared_parts() -> None:
    """One adapter with a hundred rows beside others with one, and a part in several mixes."""
    bench = Bench()
    busy, rare = bench["low rank w2 3"], bench["full 3"]
    pairs = [bench[f"{form} 3"] for form in ("lora", "low rank both", "hadamard")]
    mixes = [AdapterMix.of({busy: 0.5})] * 100
    mixes += [AdapterMix.of({busy: 0.5, other: 1.0}) for other in pairs]
    mixes += [AdapterMix.of({busy: -1.0}), AdapterMix.of({rare: 1.0}), BASE]
    random.Random(0).shuffle(mixes)
    x = draw(len(mixes), 12, seed=0)

    found = bench.run(x, *mixes)

    wanted = torch.stack([bench.oracle(row, mix) for row, mix in zip(x, mixes, strict=True)])
    assert_close(found, wanted)


def test_adapters_of_some_modules_leave_the_others_alone() -> None:
    """An adapter changes the modules that its file names."""
    bench = Bench()
    adapter = random_adapter(bench.adapted.spec, "some", paths=("second",))
    bench.adapted.add(adapter)
    x = draw(2, 12, seed=0)
    first = bench.model.first(x)

    with bench.adapted.using([AdapterMix.of({adapter: 1.0}), BASE]):
        found = bench.model.first(x)

    assert torch.equal(found, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_bases_are_within_rounding(dtype: torch.dtype) -> None:
    """The change is summed in float32, and the sum with the base's output is rounded once."""
    bench = Bench(dtype)
    mixes = [AdapterMix.of({bench["low rank w2 3"]: 0.1, bench["full 3"]: 0.1}), BASE]
    x = draw(2, 12, seed=0, dtype=dtype)
    plain = bench.model.first(x)
    changes = sum(
        0.1 * bench[form].delta_weights()["first.weight"] for form in ("low rank w2 3", "full 3")
    )
    assert isinstance(changes, Tensor)

    with bench.adapted.using(mixes, apply="unmerged"):
        found = bench.model.first(x)

    wanted = (plain[0].float() + changes.float() @ x[0].float()).to(dtype)
    if dtype is torch.float32:
        torch.testing.assert_close(found[0], wanted)
    else:
        torch.testing.assert_close(found[0], wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_base_rows_are_bit_identical_whatever_the_others_do(dtype: torch.dtype) -> None:
    """A row without an adapter pays nothing and feels nothing, not even in its zeros and NaNs."""
    bench = Bench(dtype)
    forms = ("low rank w2 3", "dora output 3", "dora input 1", "hadamard 1")
    x = draw(9, 12, seed=0, dtype=dtype)
    x[0], x[2] = -0.0, float("nan")
    x[4, 3] = float("inf")
    nowhere = [BASE] * 9
    mixes = list(nowhere)
    mixes[1::2] = [AdapterMix.of({bench[form]: 1.0}) for form in forms]
    bench.model.first.bias.fill_(-0.0)

    with bench.adapted.using(mixes, apply="unmerged"):
        found = bench.model.first(x)
    with bench.adapted.using(nowhere, apply="unmerged"):
        wanted = bench.model.first(x)

    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(found[::2].view(bits), wanted[::2].view(bits))
    assert not torch.equal(found[1::2], wanted[1::2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("apply", ["unmerged", "merged"])
def test_a_mix_that_is_off_at_a_module_is_the_base_to_the_bit(form: str, apply: ApplyWord) -> None:
    """Weight 0 is off; a delta times 0 would turn infinities into NaNs."""
    bench = Bench(torch.float32)
    on, off = bench[f"{form} 1"], bench[f"{form} 3"]
    x = draw(3, 12, seed=0, dtype=torch.float32)
    x[1, 3] = float("inf")
    base = bench.model.first(x)
    mix = AdapterMix.of({off: 1.0}, {off: {"first": 0.0}})

    with bench.adapted.using([mix, mix, AdapterMix.of({on: 1.0})], apply):
        found = bench.model.first(x)

    assert torch.equal(found[:2].view(torch.int32), base[:2].view(torch.int32))
    assert not torch.equal(found[2], base[2])


def test_the_empty_mix_is_the_unattached_model() -> None:
    """Attaching costs the base's users nothing."""
    model = make_base()
    x = draw(3, 12, seed=0)
    before = model(x)
    adapted = attach(model)

    with adapted.using(BASE):
        routed = model(x)
    with adapted.using([BASE] * 3):
        each = model(x)

    assert torch.equal(routed, before)
    assert torch.equal(each, before)
    assert torch.equal(model(x), before)


def test_swaps_of_every_kind_leave_the_base_as_it_was() -> None:
    """Base weights are only read, whatever comes and goes; answers stay right meanwhile."""
    bench = Bench(merge_cache_bytes=30_000, bank_bytes=40_000)
    before = weights_hash(bench.model)
    draws = random.Random(7)
    x = draw(3, 12, seed=0)
    plain = bench.run(x, BASE)

    for step in range(300):
        way: ApplyWord = draws.choice(["auto", "unmerged", "merged"])
        mix = bench.random_mix(draws)
        if step % 3 == 0:
            gone = draws.choice(list(bench.adapters.values()))
            bench.adapted.remove(gone.ref)
            bench.adapted.add(gone)
        try:
            found = bench.run(x, mix, BASE, mix, apply=way)
        except MergeBudgetError:
            continue
        if step % 10 == 0:
            assert_close(found[::2], bench.oracle(x[::2], mix))
        if way == "unmerged":
            assert torch.equal(found[1], plain[1])

    assert weights_hash(bench.model) == before
    assert torch.equal(bench.run(x, BASE), plain)

"""Banks hold the active parts side by side, weights folded in, within a bound."""

import random

import pytest
import torch

from lokr_core import Adapter, AdapterMix, attach
from lokr_core.layers.bank import Banks
from lokr_core.layout import AdapterLayout, tensors_of
from lokr_core.mix import MixPart
from lokr_core.pool import AdapterPool
from lokr_core.spec import ModelSpec
from lokr_core.weights import LokrWeights
from tests.core.factors import make_base, random_adapter

FORMS = ["low rank w2", "low rank both", "full"]


def spec() -> ModelSpec:
    """Return the modules of a base."""
    return attach(make_base()).spec


def part_of(adapter: Adapter, weight: float = 0.5) -> MixPart:
    """Return an adapter as a part of a mix."""
    (part,) = AdapterMix.of({adapter: weight}, {adapter: {"second": 3.0}}).parts
    return part


class Shelf:
    """A pool, its banks, and the adapters in it."""

    def __init__(self, num_adapters: int, *, num_forms: int = 1, max_bytes: int = 2**20) -> None:
        base = spec()
        self.pool = AdapterPool()
        self.adapters = [
            random_adapter(base, f"a{n}", FORMS[n % num_forms], seed=100 * n)
            for n in range(num_adapters)
        ]
        for adapter in self.adapters:
            self.pool.add(adapter)
        self.parts = [part_of(adapter) for adapter in self.adapters]
        self.banks = Banks(pool=self.pool, max_bytes=max_bytes, dtype=torch.float64)
        self.row_bytes = max(adapter.layout.num_elements for adapter in self.adapters) * 8

    def by_layout(self, parts: list[MixPart]) -> dict[AdapterLayout, list[MixPart]]:
        """Return parts by the layout of their adapter."""
        grouped: dict[AdapterLayout, list[MixPart]] = {}
        for part in parts:
            grouped.setdefault(self.pool.get(part.ref).layout, []).append(part)
        return grouped

    def check(self, *parts: MixPart) -> None:
        """Prepare a forward over ``parts`` in buckets of two and check every row."""
        needed = self.by_layout(list(parts))
        for bank, (layout, active) in zip(self.banks.prepare(needed), needed.items(), strict=True):
            buckets = [active[at : at + 2] for at in range(0, len(active), 2)]
            slices = bank.arrange(buckets, self.pool)
            for bucket, rows in zip(buckets, slices, strict=True):
                assert set(bank.parts(rows)) == set(bucket)
                for part, row in zip(bank.parts(rows), bank.rows(rows), strict=True):
                    adapter = self.pool.get(part.ref)
                    for path, scale, weight in (("first", 0.5, 0.5), ("second", 0.5, 3.0)):
                        mine = layout.modules[path].banked(row).terms[0].delta
                        theirs = adapter.module(path).terms[0].delta
                        assert isinstance(mine, LokrWeights)
                        assert isinstance(theirs, LokrWeights)
                        folded = scale * weight * theirs.w1.dense()
                        torch.testing.assert_close(mine.w1.dense(), folded)
                        assert torch.equal(mine.w2.dense(), theirs.w2.dense())


@pytest.mark.parametrize("num_rows", [1, 3, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_banks_hold_what_is_asked_within_their_bound(num_rows: int, seed: int) -> None:
    """Only what one forward needs at once may exceed the bound, and every row stays right."""
    shelf = Shelf(12, num_forms=3)
    shelf = Shelf(12, num_forms=3, max_bytes=num_rows * shelf.row_bytes)
    draws = random.Random(seed)

    for _ in range(30):
        count = draws.randint(1, 7)
        shelf.check(*draws.sample(shelf.parts, count))

        assert shelf.banks.num_bytes <= max(num_rows, count) * shelf.row_bytes


def test_a_bank_grows_ahead_while_there_is_room() -> None:
    """Adapters that come one by one do not each copy the whole bank."""
    shelf = Shelf(9, max_bytes=2**20)
    sizes = set()

    for part in shelf.parts:
        shelf.check(part)
        sizes.add(shelf.banks.num_bytes // shelf.row_bytes)

    assert sizes == {1, 2, 4, 8, 16}


def test_a_row_that_may_be_written_over_is_a_new_generation() -> None:
    """A plan that looks at such a row must be made anew, even if nothing was swapped."""
    shelf = Shelf(2)
    shelf.check(*shelf.parts)
    (bank,) = shelf.banks.prepare(shelf.by_layout(shelf.parts))
    before = bank.generation

    bank.keep_only(shelf.parts[:1])

    assert bank.generation > before


def test_parts_that_stay_in_place_keep_the_generation() -> None:
    """Decoding the same rows again reuses its plan."""
    shelf = Shelf(4)
    shelf.check(*shelf.parts)
    (bank,) = shelf.banks.prepare(shelf.by_layout(shelf.parts))
    before = bank.generation

    shelf.check(*shelf.parts)
    shelf.check(*shelf.parts[:2])

    assert bank.generation == before


def test_removed_adapters_are_forgotten() -> None:
    """A removed adapter takes no memory, whether it ever had a row or not."""
    shelf = Shelf(4)
    shelf.check(*shelf.parts[:3])
    for adapter in (shelf.adapters[0], shelf.adapters[3]):
        shelf.pool.remove(adapter.ref)

    shelf.banks.forget_removed()

    (bank,) = shelf.banks.prepare(shelf.by_layout(shelf.parts[1:3]))
    assert set(bank.parts(slice(None))) == set(shelf.parts[1:3])
    shelf.check(*shelf.parts[1:3])


def test_a_bank_of_removed_adapters_is_dropped() -> None:
    """Removing the last adapter of a layout gives its memory back."""
    shelf = Shelf(2)
    shelf.check(*shelf.parts)
    for adapter in shelf.adapters:
        shelf.pool.remove(adapter.ref)

    shelf.banks.forget_removed()

    assert shelf.banks.num_bytes == 0


def test_one_adapter_with_two_weights_has_two_rows() -> None:
    """Weights are folded into the factors, so each weight is a part of its own."""
    shelf = Shelf(1)
    (adapter,) = shelf.adapters
    once, twice = part_of(adapter, 1.0), part_of(adapter, 2.0)

    (bank,) = shelf.banks.prepare({adapter.layout: [once, twice]})
    (rows,) = bank.arrange([[once, twice]], shelf.pool)

    first, second = (
        next(tensors_of(adapter.layout.modules["first"].banked(row)))
        for _, row in sorted(zip(bank.parts(rows), bank.rows(rows), strict=True))
    )
    torch.testing.assert_close(second, 2 * first)

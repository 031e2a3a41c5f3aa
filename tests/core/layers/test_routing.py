"""Rows find their mix, or the module that cannot tell is named."""

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lokr_core import Adapted, AdapterMix, Apply, RoutingError, attach
from lokr_core.adapted import ApplyWord
from lokr_core.layers.routing import RowOrder
from tests.core.factors import Base, assert_close, draw, make_base, random_adapter


class Routed:
    """An attached base with three mixes of single adapters."""

    def __init__(self) -> None:
        self.model: Base = make_base()
        self.adapted: Adapted = attach(self.model)
        adapters = [random_adapter(self.adapted.spec, name, seed=n) for n, name in enumerate("abc")]
        for adapter in adapters:
            self.adapted.add(adapter)
        self.mixes = [AdapterMix.of({adapter: 1.0}) for adapter in adapters]

    def each(self, x: Tensor, mixes: Sequence[AdapterMix]) -> Tensor:
        """Return the output of each row alone with its mix."""
        outs = []
        for row, mix in zip(x, mixes, strict=True):
            with self.adapted.using(mix, apply="merged"):
                outs.append(self.model(row))
        return torch.stack(outs)

    def batch(self, x: Tensor, rows: RowOrder | None = None) -> Tensor:
        """Return the output of a batch that carries the first two mixes."""
        with self.adapted.using(self.mixes[:2], apply="unmerged", rows=rows):
            out: Tensor = self.model(x)
        return out


def test_each_sample_carries_its_mix_over_all_its_tokens() -> None:
    """The leading dimension is the batch; what lies behind it belongs to the sample."""
    routed = Routed()
    x = draw(2, 3, 4, 12, seed=0)

    assert_close(routed.batch(x), routed.each(x, routed.mixes[:2]))


def test_one_mix_is_for_all_rows_of_any_shape() -> None:
    """A single mix needs no batch dimension at all."""
    routed = Routed()
    (mix, *_) = routed.mixes
    x = draw(5, 12, seed=0)

    with routed.adapted.using(mix, apply="unmerged"):
        found = routed.model(x)
        vector = routed.model(x[0])
        nothing = routed.model(x[:0])

    assert_close(found, routed.each(x, [mix] * 5))
    assert_close(vector, found[0])
    assert nothing.shape == (0, 6)


def test_interleaved_rows_belong_to_the_sample_before() -> None:
    """Beams and windows lie together."""
    routed = Routed()
    a, b, _ = routed.mixes
    x = draw(4, 12, seed=0)

    assert_close(routed.batch(x, "interleave"), routed.each(x, [a, a, b, b]))


def test_tiled_rows_repeat_the_batch() -> None:
    """Guidance halves follow each other."""
    routed = Routed()
    a, b, _ = routed.mixes
    x = draw(4, 12, seed=0)

    assert_close(routed.batch(x, "tile"), routed.each(x, [a, b, a, b]))


@pytest.mark.parametrize("rows", [None, "interleave", "tile"])
def test_an_empty_batch_has_an_empty_answer(rows: RowOrder | None) -> None:
    """No rows are zero times as many as the mixes, whatever their order."""
    assert Routed().batch(draw(0, 12, seed=0), rows).shape == (0, 6)


def test_an_undeclared_multiple_is_refused() -> None:
    """Either reading may be meant, and a guess would give rows another's adapter."""
    with pytest.raises(RoutingError, match=r"module 'first' sees 4 rows for 2 mixes; declare rows"):
        Routed().batch(draw(4, 12, seed=0))


@pytest.mark.parametrize("rows", [None, "interleave", "tile"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_are_no_multiple_are_refused(rows: RowOrder | None, count: int) -> None:
    """A batch of another size is a mistake of the caller."""
    with pytest.raises(RoutingError, match=f"module 'first' sees {count} rows for 2 mixes: not a"):
        Routed().batch(draw(count, 12, seed=0), rows)


@pytest.mark.parametrize("word", ["foo", "Unmerged", "", None, 1])
def test_unknown_ways_to_apply_are_refused(word: ApplyWord) -> None:
    """A word with a typing error would merge, and take memory for it, without saying so."""
    routed = Routed()
    message = "apply=.* is none of 'auto', 'unmerged', 'merged'"

    with (
        pytest.raises(RoutingError, match=message),
        routed.adapted.using(routed.mixes[0], apply=word),
    ):
        pass
    assert routed.adapted.merges.num_bytes == 0


@pytest.mark.parametrize("word", ["tiles", "Interleave", "", 5])
def test_unknown_orders_of_rows_are_refused(word: RowOrder) -> None:
    """Rows in an order that nobody asked for would carry the adapters of others."""
    routed = Routed()
    message = "rows=.* is none of 'interleave', 'tile'"
    samples = [(mix, Apply.UNMERGED) for mix in routed.mixes]

    for context in (
        routed.adapted.using(routed.mixes, apply="merged", rows=word),
        routed.adapted.route_samples(samples, rows=word),
    ):
        with pytest.raises(RoutingError, match=message), context:
            pass
    assert routed.adapted.merges.num_bytes == 0


@pytest.mark.parametrize("apply", Apply)
def test_ways_to_apply_may_be_given_as_members(apply: Apply) -> None:
    """The enumeration is public, and its members mean what their words mean."""
    routed = Routed()
    mix = routed.mixes[0]

    with routed.adapted.using(mix, apply=apply):
        routed.model(draw(2, 12, seed=0))

    assert (mix in routed.adapted.merges) == (apply is Apply.MERGED)


def test_modules_that_no_mix_changes_may_see_any_rows() -> None:
    """Position tables and the like are no concern of the adapters."""
    routed = Routed()
    adapter = random_adapter(routed.adapted.spec, "d", paths=("head",))
    routed.adapted.add(adapter)
    hidden = draw(3, 12, seed=0)
    wanted = routed.model.first(hidden)

    with routed.adapted.using([AdapterMix.of({adapter: 1.0}), AdapterMix()]):
        found = routed.model.first(hidden)

    assert torch.equal(found, wanted)


def test_another_thread_has_no_mix_of_this_one() -> None:
    """A context routes the forwards of its own thread; others run on at their own."""
    routed = Routed()
    x = draw(2, 12, seed=0)
    base = routed.model(x)
    found: list[Tensor] = []

    with routed.adapted.using(routed.mixes[0]):
        thread = threading.Thread(target=lambda: found.append(routed.model(x)))
        thread.start()
        thread.join()

    assert torch.equal(found[0], base)

"""Plans look into banks; what they look at must not move under them, nor outgrow its bound."""

import threading
import weakref

import pytest
import torch
from torch import Tensor

from lokr_core import Adapted, AdapterMix, Apply, MergeError, RoutingError, RowSpan, attach
from lokr_core.layers.plans import Plans
from lokr_core.pool import AdapterPool
from tests.core.factors import Base, assert_close, draw, make_base, random_adapter

FORMS = ["low rank w2", "low rank both"]


def adapted_with(num_adapters: int, **options: int) -> tuple[Adapted, list[AdapterMix]]:
    """Return an attached base and the mixes of single adapters, in two layouts."""
    adapted = attach(make_base(), **options)
    adapters = [
        random_adapter(adapted.spec, f"a{n}", FORMS[n % 2], seed=100 * n)
        for n in range(num_adapters)
    ]
    for adapter in adapters:
        adapted.add(adapter)
    return adapted, [AdapterMix.of({adapter: 0.5}) for adapter in adapters]


def model_of(adapted: Adapted) -> Base:
    """Return the model."""
    assert isinstance(adapted.model, Base)
    return adapted.model


def alone(adapted: Adapted, mix: AdapterMix, x: Tensor) -> Tensor:
    """Return the answer of a merged mix, which looks into no bank."""
    with adapted.using(mix, apply="merged"):
        out: Tensor = model_of(adapted)(x)
    return out


def spans_of(*rows: tuple[AdapterMix, int]) -> list[RowSpan]:
    """Return unmerged spans."""
    return [RowSpan(mix=mix, apply=Apply.UNMERGED, num_rows=count) for mix, count in rows]


def assert_routed(adapted: Adapted, *rows: tuple[AdapterMix, int]) -> None:
    """Check that packed tokens with these mixes get what each mix gives alone."""
    x = draw(sum(count for _, count in rows), 12, seed=len(rows))
    parts = x.split([count for _, count in rows])
    wanted = [alone(adapted, mix, part) for (mix, _), part in zip(rows, parts, strict=True)]

    with adapted.route(spans_of(*rows)):
        found = model_of(adapted)(x)

    assert_close(found, torch.cat(wanted))


def test_a_kept_plan_is_made_anew_when_its_rows_are_written_over() -> None:
    """A bank that is full writes a new part over one that it forgot."""
    adapted, mixes = adapted_with(6, bank_bytes=1)
    same_layout = mixes[::2]

    for _ in range(3):
        assert_routed(adapted, (same_layout[0], 2), (same_layout[1], 1))
        assert_routed(adapted, (same_layout[0], 2), (same_layout[2], 1))


def test_the_head_may_see_other_rows_than_the_tokens() -> None:
    """Only rows whose prompt has ended reach the head, and its plan moves no row of the tokens'."""
    adapted, mixes = adapted_with(6)
    model = model_of(adapted)
    one, other, third = mixes[0], mixes[2], mixes[4]
    x = draw(306, 12, seed=0)
    rows = [(one, 5), (other, 1), (third, 300)]
    wanted = [alone(adapted, mix, x[at : at + 1]) for mix, at in ((other, 5), (third, 305))]

    for _ in range(2):
        with adapted.route(spans_of(*rows), head=("head", spans_of((other, 1), (third, 1)))):
            hidden = torch.tanh(model.second(torch.tanh(model.first(x))))
            found = model.head(hidden[[5, 305]])

        assert_close(found, torch.cat(wanted))


def test_a_head_that_nobody_adapts_is_the_base() -> None:
    """A head may see rows of the base only, or none."""
    adapted, mixes = adapted_with(1)
    model = model_of(adapted)
    x, hidden = draw(2, 12, seed=0), draw(1, 15, seed=1)
    head_of_base = model.head(hidden)

    with adapted.route(
        spans_of((mixes[0], 1), (AdapterMix(), 1)), ("head", spans_of((AdapterMix(), 1)))
    ):
        model.first(x)
        found = model.head(hidden)
    with adapted.route(spans_of((mixes[0], 2)), ("head", ())):
        nothing = model.head(hidden[:0])

    assert torch.equal(found, head_of_base)
    assert nothing.shape == (0, 6)


def test_a_head_row_must_belong_to_a_token() -> None:
    """The caller's spans contradict each other, so none of them can be believed."""
    adapted, mixes = adapted_with(4)
    head = "head", spans_of((mixes[2], 1))

    with (
        pytest.raises(RoutingError, match=r"rows of 'a2\*0.5', which no token carries"),
        adapted.route(spans_of((mixes[0], 1)), head),
    ):
        pass


def test_packed_rows_must_be_as_many_as_the_spans_say() -> None:
    """A missing row would shift every mix to its neighbour."""
    adapted, mixes = adapted_with(1)
    model = model_of(adapted)

    with adapted.route(spans_of((mixes[0], 3)), ("head", spans_of((mixes[0], 1)))):
        with pytest.raises(RoutingError, match="module 'first' sees 4 rows, but the spans have 3"):
            model.first(draw(4, 12, seed=0))
        with pytest.raises(RoutingError, match="module 'head' sees 3 rows, but the spans have 1"):
            model.head(draw(3, 15, seed=0))


def test_modules_that_nobody_changes_may_see_other_rows() -> None:
    """A norm of every head sees more rows than there are tokens, and is the base's."""
    adapted = attach(make_base())
    adapter = random_adapter(adapted.spec, "a", paths=("second",))
    adapted.add(adapter)
    model, x = model_of(adapted), draw(4, 12, seed=0)
    base = model.first(x)

    with adapted.route(spans_of((AdapterMix.of({adapter: 1.0}), 2))):
        found = model.first(x)

    assert torch.equal(found, base)


def test_all_base_tokens_are_not_routed() -> None:
    """Rows of the base cost nothing."""
    adapted, _ = adapted_with(1)
    x = draw(3, 12, seed=0)
    base = model_of(adapted)(x)

    with adapted.route(spans_of((AdapterMix(), 3)), ("head", spans_of((AdapterMix(), 1)))):
        assert torch.equal(model_of(adapted)(x), base)


def plans_of(adapted: Adapted, pool: AdapterPool) -> Plans:
    """Return plans over the merge cache of a model."""
    return Plans(pool=pool, merges=adapted.merges, max_bytes=2**20, dtype=torch.float64)


def test_the_same_spans_get_the_same_plan_until_an_adapter_leaves() -> None:
    """Decoding repeats its rows, and pays for planning once; a removed adapter is let go."""
    adapted = attach(make_base())
    adapter, other = (random_adapter(adapted.spec, name, seed=n) for n, name in enumerate("ab"))
    pool = AdapterPool()
    pool.add(adapter)
    pool.add(other)
    plans = plans_of(adapted, pool)
    spans = tuple(spans_of((AdapterMix.of({adapter: 1.0}), 2)))

    first = plans.token_plans(spans, ())
    again = plans.token_plans(spans, ())
    pool.remove(other.ref)
    later = plans.token_plans(spans, ())

    assert again is first
    assert later is not first


def test_few_plans_are_kept() -> None:
    """Prefill makes a new plan at each step, and none of them comes back."""
    adapted = attach(make_base())
    adapter = random_adapter(adapted.spec, "a")
    pool = AdapterPool()
    pool.add(adapter)
    plans = plans_of(adapted, pool)
    mix = AdapterMix.of({adapter: 1.0})

    first = plans.token_plans(tuple(spans_of((mix, 1))), ())
    for count in range(2, 80):
        plans.token_plans(tuple(spans_of((mix, count))), ())

    assert plans.token_plans(tuple(spans_of((mix, 1))), ()) is not first


def test_kept_plans_do_not_hold_merged_weights_that_were_evicted() -> None:
    """The merge cache is bounded in bytes; a plan that lingers must not undo that."""
    adapted = attach(make_base())
    adapter = random_adapter(adapted.spec, "a")
    adapted.add(adapter)
    mix = AdapterMix.of({adapter: 1.0})
    merged = adapted.merge(mix)
    weight = weakref.ref(merged.weights["first"])
    adapted.merges.put(mix, merged)
    plans = plans_of(adapted, AdapterPool())
    plans.token_plans((RowSpan(mix=mix, apply=Apply.MERGED, num_rows=2),), ())
    del merged

    adapted.merges.release(mix)
    adapted.merges.discard_adapter(adapter.ref)
    plans.token_plans((), ())

    assert weight() is None


def test_a_merged_span_needs_its_merged_weights() -> None:
    """The caller holds a lease for as long as the forward runs; without one nothing is guessed."""
    adapted, mixes = adapted_with(1)

    with (
        pytest.raises(MergeError, match=r"mix 'a0\*0.5' is not merged"),
        adapted.route([RowSpan(mix=mixes[0], apply=Apply.MERGED, num_rows=1)]),
    ):
        pass


def test_threads_at_once_have_their_own_mixes_and_banks() -> None:
    """A plan of one thread must not move what another thread's forward looks at."""
    adapted, mixes = adapted_with(6)
    x = draw(3, 12, seed=0)
    wanted = [alone(adapted, mix, x) for mix in mixes]
    wrong: list[int] = []
    barrier = threading.Barrier(3)

    def run(offset: int) -> None:
        barrier.wait()
        for n in range(60):
            first, second = (n + offset) % 6, (n + offset + 2) % 6
            with adapted.using([mixes[first], mixes[second], mixes[first]], apply="unmerged"):
                found = model_of(adapted)(x)
            rows = wanted[first][0], wanted[second][1], wanted[first][2]
            if not torch.allclose(found, torch.stack(rows)):
                wrong.append(n)

    threads = [threading.Thread(target=run, args=(offset,)) for offset in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []

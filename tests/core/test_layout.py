"""All factors of an adapter lie in one flat buffer, and come back as views of it."""

import torch

from lokr_core.layout import DenseSlots, LokrSlots, tensors_of
from lokr_core.packing import ALIGNMENT_BYTES, pack, with_layout
from lokr_core.weights import (
    DenseWeights,
    FullFactor,
    LokrWeights,
    ModuleWeights,
    Replacement,
    Rows,
    Term,
    TuckerFactor,
)
from tests.core.factors import FORMS, draw, random_module

WEIGHT = draw(15, 20, seed=0)


def modules(seed: int = 0) -> dict[str, ModuleWeights]:
    """Return a module of every form."""
    return {form: random_module(WEIGHT, form, seed + n) for n, form in enumerate(FORMS)}


def test_every_tensor_comes_back_as_an_aligned_view_of_the_buffer() -> None:
    """Moving an adapter is one copy, and kernels read aligned factors."""
    given = modules()

    packed = pack(given)

    for n, (path, slots) in enumerate(packed.layout.modules.items()):
        view = slots.view(packed.buffer, [float(packed.scales[n])])
        assert view.terms[0].delta.scale == given[path].terms[0].delta.scale
        pairs = list(zip(tensors_of(view), tensors_of(given[path]), strict=True))
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        for mine, _ in pairs:
            assert mine.untyped_storage().data_ptr() == packed.buffer.untyped_storage().data_ptr()
            assert (mine.data_ptr() - packed.buffer.data_ptr()) % ALIGNMENT_BYTES == 0


def test_leading_factors_come_first() -> None:
    """Scale and weight are folded in by one product over the head of the buffer."""
    layout = pack(modules()).layout

    ends = 0
    for slots in layout.modules.values():
        delta = slots.terms[0].delta
        assert not isinstance(delta, DenseSlots)
        first = delta.w1 if isinstance(delta, LokrSlots) else delta.left
        assert first.tensors[0].offset == ends
        ends += sum(slots.leading_sizes)
    assert ends == layout.num_leading


def test_layouts_depend_on_shapes_alone() -> None:
    """Thousands of adapters of one training recipe share one description."""
    one, other = pack(modules(0)), pack(dict(reversed(modules(50).items())))
    smaller = pack({"full": modules()["full"]})

    assert one.layout == other.layout
    assert hash(one.layout) == hash(other.layout)
    assert one.layout != smaller.layout
    shared = with_layout(other, one.layout)
    assert shared.layout is one.layout
    assert shared.buffer is other.buffer


def test_the_buffer_has_the_widest_dtype() -> None:
    """No factor loses precision when it is packed."""
    half = FullFactor(matrix=draw(3, 4, seed=0, dtype=torch.bfloat16))
    single = FullFactor(matrix=draw(5, 5, seed=1, dtype=torch.float32))

    packed = pack({"m": ModuleWeights.of(LokrWeights(w1=half, w2=single, scale=1.0))})

    assert packed.buffer.dtype == torch.float32


def test_views_of_several_buffers_side_by_side_are_batched() -> None:
    """A bank of rows is viewed like one adapter, with one dimension in front."""
    packed = [pack(modules(seed)) for seed in (0, 50)]
    bank = torch.stack([p.buffer for p in packed])

    view = packed[0].layout.modules["low rank both"].view(bank, [1.0])

    assert view.terms[0].delta.shape == (15, 20)
    for tensor, single in zip(
        tensors_of(view), tensors_of(modules(50)["low rank both"]), strict=True
    ):
        assert torch.equal(tensor[1], single)


def test_everything_that_an_adapter_may_change_is_packed() -> None:
    """Cores, several terms, vectors, biases, dense deltas and replacements come back whole."""
    core = TuckerFactor(core=draw(2, 3, 9, seed=1), a=draw(2, 5, seed=2), b=draw(3, 4, seed=3))
    one = FullFactor(matrix=draw(3, 5, seed=4))
    term = Term(delta=LokrWeights(w1=one, w2=core, scale=0.5), rows=Rows(start=2, stop=9), at=4)
    dense = Term(delta=DenseWeights(matrix=draw(15, 180, seed=5), scale=2.0))
    given = {
        "conv": ModuleWeights(terms=(term, dense), bias=draw(15, seed=6)),
        "head": ModuleWeights(replacement=Replacement(weight=draw(7, 4, seed=7))),
        "norm": ModuleWeights(vector=draw(9, seed=8), bias=draw(9, seed=9)),
    }

    packed = pack(given)

    layout = packed.layout
    assert packed.scales.tolist() == [0.5, 2.0, 1.0, 1.0, 1.0]
    views = {
        "conv": layout.modules["conv"].view(packed.buffer, [0.5, 2.0, 1.0]),
        "head": layout.modules["head"].view(packed.buffer, []),
        "norm": layout.modules["norm"].view(packed.buffer, [1.0, 1.0]),
    }
    for path, view in views.items():
        for mine, theirs in zip(tensors_of(view), tensors_of(given[path]), strict=True):
            assert torch.equal(mine, theirs)
    assert views["conv"].terms[0].outputs == Rows(start=4, stop=11)
    num_dense = 15 * 180 + 7 * 4
    assert layout.num_banked <= layout.num_elements - num_dense
    banked = layout.modules["conv"].banked(packed.buffer[: layout.num_banked])
    assert len(banked.terms) == 1


def test_views_of_dense_and_small_parts_say_where_they_lie() -> None:
    """A bank copies what has factors, and leaves whole matrices where they are."""
    dense = Term(delta=DenseWeights(matrix=draw(4, 4, seed=0), scale=1.0))
    modules = {
        "both": ModuleWeights(terms=(dense,), bias=draw(4, seed=1)),
        "dense": ModuleWeights(terms=(dense,)),
        "factors": random_module(WEIGHT, "full", 2),
    }

    slots = pack(modules).layout.modules

    assert [slots[path].has_bank for path in modules] == [True, False, True]
    assert [slots[path].has_dense for path in modules] == [True, True, False]

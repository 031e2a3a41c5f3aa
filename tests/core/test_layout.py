"""All factors of an adapter lie in one flat buffer, and come back as views of it."""

import torch

from lokr_core.layout import ALIGNMENT_BYTES, pack, tensors_of, with_layout
from lokr_core.weights import FullFactor, LokrWeights, ModuleWeights
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
        view = slots.view(packed.buffer, float(packed.scales[n]))
        assert view.delta.scale == given[path].delta.scale
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
        assert slots.leading.offset == ends
        ends += slots.leading_size
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

    packed = pack({"m": ModuleWeights(delta=LokrWeights(w1=half, w2=single, scale=1.0))})

    assert packed.buffer.dtype == torch.float32


def test_views_of_several_buffers_side_by_side_are_batched() -> None:
    """A bank of rows is viewed like one adapter, with one dimension in front."""
    packed = [pack(modules(seed)) for seed in (0, 50)]
    bank = torch.stack([p.buffer for p in packed])

    view = packed[0].layout.modules["low rank both"].view(bank, 1.0)

    assert view.delta.shape == (15, 20)
    for tensor, single in zip(
        tensors_of(view), tensors_of(modules(50)["low rank both"]), strict=True
    ):
        assert torch.equal(tensor[1], single)

"""Merged weights are the base plus the mix, rounded once, and nobody else's."""

import pytest
import torch
from torch import nn

from lokr_core import AdapterMix, attach
from tests.core.factors import (
    FORMS,
    assert_close,
    build_adapter,
    draw,
    make_base,
    random_adapter,
    random_module,
)
from tests.tiny import tiny_gpt2


def test_merged_weights_are_the_sum_of_the_changes() -> None:
    """A mix is W plus the weighted differences that each adapter makes alone."""
    model = make_base()
    adapted = attach(model)
    adapters = [random_adapter(adapted.spec, f"a{n}", form) for n, form in enumerate(FORMS)]
    for adapter in adapters:
        adapted.add(adapter)
    weights = [1.0, -0.5, 0.25, 2.0, 0.7, -1.0, 0.1]
    mix = AdapterMix.of(dict(zip(adapters, weights, strict=True)), {adapters[0]: {"head": 0.0}})

    merged = adapted.merge(mix)

    for path in ("first", "second", "head"):
        wanted = model.get_submodule(path).get_parameter("weight").clone()
        for adapter, weight in zip(adapters, weights, strict=True):
            factor = 0.0 if (adapter is adapters[0] and path == "head") else weight
            wanted += factor * adapter.delta_weights()[f"{path}.weight"]
        assert_close(merged.weights[path], wanted)
    assert merged.num_bytes == sum(p.nbytes for n, p in model.named_parameters() if "weight" in n)
    assert merged.rounding_loss < 1e-14


def test_merging_the_base_gives_nothing() -> None:
    """The base has no change to lose."""
    merged = attach(make_base()).merge(AdapterMix())

    assert merged.weights == {}
    assert merged.num_bytes == 0
    assert merged.rounding_loss == 0


def small_change(dtype: torch.dtype, size: float) -> float:
    """Return the rounding loss of a change that is ``size`` times the base's weights."""
    model = make_base(dtype)
    adapted = attach(model)
    module = random_module(model.first.weight.double(), "full", 1)
    adapter = build_adapter(adapted.spec, "a", {"first": module})
    adapted.add(adapter)
    change = adapter.delta_weights()["first.weight"].norm()
    weight = size * float(model.first.weight.float().norm() / change)
    return adapted.merge(AdapterMix.of({adapter: weight})).rounding_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e-1, 1e-2])
def test_rounding_loss_is_the_bases_rounding_over_the_change(
    dtype: torch.dtype, size: float
) -> None:
    """A rounding is off by up to half a unit in the last place: about eps / sqrt(48) of a weight.

    The mean square over a binade lies between eps^2 / 48 and eps^2 / 12 of the weight's square.
    """
    loss = small_change(dtype, size) * size

    eps = torch.finfo(dtype).eps
    assert eps / 48**0.5 / 2 < loss / max(1.0, size * 2**0.5) < eps / 12**0.5


def test_a_change_below_half_a_unit_is_lost_whole() -> None:
    """Such a merge would serve the base under the adapter's name; its loss says so."""
    assert small_change(torch.bfloat16, 1e-5) == pytest.approx(1.0, abs=0.35)
    assert small_change(torch.float32, 1e-5) < 0.01


def test_a_merged_tied_head_leaves_the_embedding_alone() -> None:
    """GPT-2's head and embedding share one tensor, of which the adapter changes one use."""
    model = tiny_gpt2(torch.float64)
    adapted = attach(model)
    head, embedding = model.get_submodule("lm_head"), model.get_submodule("transformer.wte")
    assert isinstance(head, nn.Linear)
    assert head.weight is embedding.weight
    adapter = random_adapter(adapted.spec, "a", paths=("lm_head",))
    adapted.add(adapter)
    ids, hidden = torch.arange(4), draw(2, 64, seed=0)
    before = embedding(ids)
    merged = adapted.merge(AdapterMix.of({adapter: 1.0}))

    with adapted.using(AdapterMix.of({adapter: 1.0}), apply="merged"):
        after, logits = embedding(ids), head(hidden)

    assert torch.equal(after, before)
    assert_close(logits, hidden @ (head.weight + adapter.delta_weights()["lm_head.weight"]).mT)
    assert merged.weights["lm_head"].data_ptr() != head.weight.data_ptr()


def test_merged_conv1d_weights_keep_the_bases_layout() -> None:
    """What takes the place of a weight has its shape."""
    adapted = attach(tiny_gpt2(torch.float64))
    path = "transformer.h.0.mlp.c_fc"
    adapter = random_adapter(adapted.spec, "a", paths=(path,))
    adapted.add(adapter)

    merged = adapted.merge(AdapterMix.of({adapter: 1.0})).weights[path]

    assert merged.shape == (64, 256)
    assert merged.is_contiguous()

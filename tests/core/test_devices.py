"""A base on another device than the files' numbers: the adapter is brought to it.

The other device is torch's own lazy one, which any build has: like CUDA it refuses tensors of the
CPU beside its own.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch._lazy import ts_backend

from lokr_core import Adapted, Adapter, AdapterMix, LokrError, attach
from lokr_core.adapted import ApplyWord
from lokr_core.adapter import beside_base
from lokr_core.weights import DenseWeights, ModuleWeights, Replacement, Term
from tests.core.bench import BASE
from tests.core.factors import (
    FORMS,
    assert_close,
    build_adapter,
    draw,
    make_base,
    random_adapter,
    random_module,
)

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
KINDS = [*FORMS, "no factors"]


@pytest.fixture(params=["lazy", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device that is not the CPU."""
    name: str = request.param
    if name == "lazy":
        start_lazy()
    return torch.zeros(1).to(name).device


@cache
def start_lazy() -> None:
    """Start the lazy device, which can be done once."""
    ts_backend.init()


def adapter_of(kind: str, adapted: Adapted) -> Adapter:
    """Return an adapter of a base, whose numbers are those of a new one, as it is read: on the CPU.

    Args:
        kind: A form, or "no factors": a dense delta, biases, and a weight that replaces another.
        adapted: The base, on any device.
    """
    spec = attach(make_base()).spec
    if kind != "no factors":
        return replace(random_adapter(spec, "a", kind), spec=adapted.spec)
    dense = DenseWeights(matrix=draw(20, 12, seed=1), scale=0.5)
    modules = {
        "first": ModuleWeights(terms=(Term(delta=dense),), bias=draw(20, seed=2)),
        "second": ModuleWeights(
            replacement=Replacement(weight=draw(15, 20, seed=3), bias=draw(15, seed=4))
        ),
    }
    return replace(build_adapter(spec, "a", modules), spec=adapted.spec)


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
@pytest.mark.parametrize("kind", KINDS)
def test_base_on_another_device_gives_the_same(
    kind: str, apply: ApplyWord, device: torch.device
) -> None:
    """What is read from a file lies on the CPU, and products of two devices do not exist."""
    if device.type == "lazy" and (kind, apply) == ("hadamard", "unmerged"):
        pytest.skip("the lazy device cannot take a tensor apart")
    x = draw(3, 12, seed=0)
    outs = []
    for place in (torch.device("cpu"), device):
        model = make_base().to(place)
        adapted = attach(model)
        adapter = adapter_of(kind, adapted)
        adapted.add(adapter)
        mixes = [AdapterMix.of({adapter: 1.0}), BASE, AdapterMix.of({adapter: -0.7})]
        with adapted.using(mixes, apply=apply):
            outs.append(model(x.to(place)))

    assert outs[1].device == device
    assert_close(outs[1].cpu(), outs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_delta_weights_lie_where_the_factors_do(kind: str, device: torch.device) -> None:
    """Whoever asks for them has the adapter at hand, on the CPU or on the device of the base."""
    wanted = adapter_of(kind, attach(make_base())).delta_weights()
    adapter = adapter_of(kind, attach(make_base().to(device)))

    for placed in (adapter, beside_base(adapter)):
        found = placed.delta_weights()

        assert {change.device for change in found.values()} == {placed.buffer.device}
        assert found.keys() == wanted.keys()
        for name, change in found.items():
            assert_close(change.cpu(), wanted[name])


def test_what_is_added_stays_where_it_was(device: torch.device) -> None:
    """The adapter belongs to the caller, who may add it to the model again."""
    adapted = attach(make_base().to(device))
    adapter = adapter_of("full", adapted)
    mix = AdapterMix.of({adapter: 1.0})

    adapted.add(adapter)
    adapted.add(adapter)

    assert adapter.buffer.device == torch.device("cpu")
    adapted.check(mix)
    adapted.remove(adapter.ref)
    adapted.add(adapter)
    assert adapted.merge(mix).device == device


def test_adapter_beside_its_base_is_no_copy(device: torch.device) -> None:
    """A server brings adapters to the device itself, and counts their bytes once."""
    for place in (torch.device("cpu"), device):
        there = beside_base(adapter_of("full", attach(make_base().to(place))))

        assert there.buffer.device == place
        assert beside_base(there) is there


def test_adapter_of_modules_on_several_devices_is_refused(device: torch.device) -> None:
    """Its factors lie in one buffer; half of its modules could not use them."""
    model = make_base()
    model.head.to(device)
    adapted = attach(model)

    message = f"'a' changes modules on several devices, 'first' on cpu and 'head' on {device}"
    with pytest.raises(LokrError, match=message):
        adapted.add(adapter_of("full", adapted))


def test_only_the_modules_that_an_adapter_changes_tell_its_device(device: torch.device) -> None:
    """The text encoder of a pipeline may stay on the CPU while its denoiser does not."""
    model = make_base()
    model.head.to(device)
    adapted = attach(model)
    change = {"head": random_module(draw(6, 15, seed=0), "full", seed=1)}
    adapter = build_adapter(adapted.spec, "a", change)
    adapted.add(adapter)
    x = draw(2, 15, seed=0)

    with adapted.using(AdapterMix.of({adapter: 1.0}), apply="unmerged"):
        found = model.head(x.to(device))

    delta = adapter.delta_weights()["head.weight"]
    assert_close(found.cpu(), nn.functional.linear(x, model.head.weight.cpu() + delta))


def test_base_without_memory_leaves_an_adapter_where_it_is() -> None:
    """Offloaded modules are on meta between forwards; numbers that go there are lost."""
    adapted = attach(make_base().to("meta"))
    adapter = adapter_of("full", adapted)

    assert beside_base(adapter) is adapter
    assert adapter.delta_weights()["head.weight"].device == torch.device("cpu")

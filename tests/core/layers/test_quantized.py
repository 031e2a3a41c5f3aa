"""Quantised linear modules: unmerged as any other, never merged, and read where they can be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lokr_core import AdapterMix, MergeError, UnsupportedModuleError, attach
from lokr_core.layers.discover import discover
from lokr_core.ops.torch_ops import dora_gain
from lokr_core.spec import ModuleSpec
from lokr_core.weights import GainAxis, LokrWeights, ModuleWeights, Term
from tests.core.factors import Base, build_adapter, draw, low_rank, make_base, random_factor

quantization = pytest.importorskip("torchao.quantization")


def quantized_base() -> Base:
    """Return a base whose linear modules have int8 weights."""
    model = make_base(torch.float32)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def lokr() -> LokrWeights:
    """Return a change of the first module."""
    w1, w2 = random_factor(4, 3, None, 1), low_rank(5, 4, 2, 2)
    return LokrWeights(w1=w1, w2=w2, scale=0.5)


def plain(spec: ModuleSpec) -> ModuleWeights:
    """Return a change without a gain."""
    return ModuleWeights.of(lokr())


def dora(axis: GainAxis) -> Callable[[ModuleSpec], ModuleWeights]:
    """Return a maker of changes with a gain, whose norms are those of the unpacked weight."""

    def make(spec: ModuleSpec) -> ModuleWeights:
        size = spec.shape[0 if axis is GainAxis.OUTPUT else 1]
        magnitude = draw(size, seed=4).abs() + 1
        return ModuleWeights.of(
            lokr(), dora_gain(spec.weight, [Term(delta=lokr())], magnitude, axis, 0.0)
        )

    return make


@pytest.mark.parametrize("make", [plain, dora(GainAxis.OUTPUT), dora(GainAxis.INPUT)])
def test_changes_are_added_beside_a_packed_weight(
    make: Callable[[ModuleSpec], ModuleWeights],
) -> None:
    """The base's own forward unpacks its weight; the change needs it for the gain at most."""
    model = quantized_base()
    adapted = attach(model)
    adapter = build_adapter(adapted.spec, "a", {"first": make(adapted.spec.modules["first"])})
    adapted.add(adapter)
    x = draw(3, 12, seed=0, dtype=torch.float32)
    base = model.first(x)

    with adapted.using([AdapterMix.of({adapter: 0.5}), AdapterMix()] * 1 + [AdapterMix()]):
        found = model.first(x)

    wanted = base[0] + 0.5 * x[0] @ adapter.delta_weights()["first.weight"].mT
    torch.testing.assert_close(found[0], wanted)
    assert torch.equal(found[1:], base[1:])


def test_nothing_is_merged_into_a_packed_weight() -> None:
    """There is no place for the change in its grid; the error names the module."""
    model = quantized_base()
    adapted = attach(model)
    adapter = build_adapter(adapted.spec, "a", {"first": ModuleWeights.of(lokr())})
    adapted.add(adapter)
    mix = AdapterMix.of({adapter: 1.0})

    adapted.check(mix)
    with pytest.raises(MergeError, match="module 'first' has a quantised weight"):
        adapted.merge(mix)


def test_shapes_and_dtypes_do_not_come_from_packed_weights() -> None:
    """Other libraries pack two values into a byte, in a shape that says nothing."""

    class Packed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(12, 20)
            packed = torch.zeros(120, 1, dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            return input.new_zeros(*input.shape[:-1], 20)

    spec = discover(nn.ModuleDict({"packed": Packed()}))
    module = spec.modules["packed"]

    assert spec.dtype == torch.float32
    assert module.is_quantized
    assert module.shape == (20, 12)
    with pytest.raises(UnsupportedModuleError, match=r"module 'packed' .* cannot be read"):
        _ = module.weight


def test_eight_bits_are_packed_though_they_float() -> None:
    """Their scales lie elsewhere in the module, so that a merge into them would be far off."""

    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(12, 20, bias=False)
            eight = torch.zeros(20, 12, dtype=torch.float8_e4m3fn)
            self.weight = nn.Parameter(eight, requires_grad=False)

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            return nn.functional.linear(input, 3 * self.weight.float())

    module = discover(nn.ModuleDict({"scaled": Scaled()})).modules["scaled"]

    assert module.is_quantized
    assert module.refusal is None
    with pytest.raises(UnsupportedModuleError, match=r"module 'scaled' .* cannot be read"):
        _ = module.weight

"""Rows of images and long prompts are left where they lie, and computed no more than once."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lokr_core import Adapted, AdapterMix, attach
from tests.core.factors import assert_close, draw, random_adapter
from tests.core.layers.subjects import Host

NUM_SAMPLES = 7
FORMS = ["low rank w2", "dora output"]
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(32, 64), (600, 32)),
    "convolution": (lambda: nn.Conv2d(9, 16, 3, padding=1), (9, 48, 48)),
    "convolution of single positions": (lambda: nn.Conv2d(12, 16, 1), (12, 48, 48)),
}


class Bench:
    """A layer, a batch of large samples, and three adapters of one layout."""

    def __init__(self, layer: str, form: str) -> None:
        build, shape = LAYERS[layer]
        torch.manual_seed(0)
        self.host = Host(build()).double().requires_grad_(False)
        self.x = draw(NUM_SAMPLES, *shape, seed=1)
        self.adapted: Adapted = attach(self.host)
        self.adapters = [
            random_adapter(self.adapted.spec, f"a{n}", form, seed=50 * n, paths=("layer",))
            for n in range(3)
        ]
        for adapter in self.adapters:
            self.adapted.add(adapter)
        a, b, c = (AdapterMix.of({adapter: 1.0}) for adapter in self.adapters)
        both = AdapterMix.of({self.adapters[2]: 0.5, self.adapters[0]: -2.0})
        # In no order, unequally often, in several runs, and an adapter in two mixes.
        self.mixes = [c, a, a, AdapterMix(), both, b, c]

    def alone(self, mix: AdapterMix, sample: int) -> Tensor:
        """Return one sample's answer with merged weights."""
        with self.adapted.using(mix, "merged"):
            out: Tensor = self.host(self.x[sample : sample + 1])
        return out[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_large_samples_get_their_own_mix_where_they_lie(layer: str, form: str) -> None:
    """Images of several users lie in a batch as they came, each with many tokens."""
    bench = Bench(layer, form)
    wanted = [bench.alone(mix, sample) for sample, mix in enumerate(bench.mixes)]

    with bench.adapted.using(bench.mixes, "unmerged"):
        found = bench.host(bench.x)
        again = bench.host(bench.x)

    assert_close(found, torch.stack(wanted))
    assert torch.equal(again, found)


@pytest.mark.parametrize("layer", LAYERS)
def test_large_merged_samples_cost_what_the_base_costs(layer: str) -> None:
    """Each is computed once, with its own weights; the base computes only what is left."""
    bench = Bench(layer, FORMS[0])
    wanted = [bench.alone(mix, sample) for sample, mix in enumerate(bench.mixes)]

    with FlopCounterMode(display=False) as of_base:
        bench.host(bench.x)
    with bench.adapted.using(bench.mixes, "merged"), FlopCounterMode(display=False) as of_merged:
        found = bench.host(bench.x)

    assert_close(found, torch.stack(wanted))
    assert of_merged.get_total_flops() == of_base.get_total_flops()

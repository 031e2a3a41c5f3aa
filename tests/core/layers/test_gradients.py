"""Forwards with and without gradients may follow each other; what is kept serves both."""

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from lokr_core import Adapted, AdapterMix, Apply, RowSpan, attach
from lokr_core.adapted import ApplyWord
from tests.core.factors import FORMS, Base, assert_close, draw, make_base, random_adapter


class Bench:
    """An attached base and two mixes of one form."""

    def __init__(self, form: str) -> None:
        self.model: Base = make_base()
        self.adapted: Adapted = attach(self.model)
        self.adapters = [random_adapter(self.adapted.spec, n, form, seed=ord(n)) for n in "ab"]
        for adapter in self.adapters:
            self.adapted.add(adapter)
        self.mixes = [AdapterMix.of({adapter: 0.5}) for adapter in self.adapters]

    def gradient(self, context: AbstractContextManager[None]) -> Tensor:
        """Return the gradient of the output's sum, by the input."""
        x = draw(2, 12, seed=0).requires_grad_()
        with context:
            self.model(x).sum().backward()
        assert x.grad is not None
        return x.grad

    def using(self, apply: ApplyWord) -> AbstractContextManager[None]:
        """Return a context of both mixes."""
        return self.adapted.using(self.mixes, apply)

    def route(self) -> AbstractContextManager[None]:
        """Return a context of both mixes, whose plan is kept."""
        return self.adapted.route(
            [RowSpan(mix=mix, apply=Apply.UNMERGED, num_rows=1) for mix in self.mixes]
        )


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_flow_after_a_forward_in_inference_mode(form: str, apply: ApplyWord) -> None:
    """Tensors that are made in inference mode can never serve a gradient, so none may be kept."""
    bench, fresh = Bench(form), Bench(form)
    with torch.inference_mode(), bench.using(apply):
        bench.model(draw(2, 12, seed=0))

    found = bench.gradient(bench.using(apply))

    assert_close(found, fresh.gradient(fresh.using(apply)))


@pytest.mark.parametrize("form", FORMS)
def test_a_kept_plan_serves_gradients_after_inference_mode(form: str) -> None:
    """The plan, and what each module prepared for it, outlive the forward that made them."""
    bench, fresh = Bench(form), Bench(form)
    with torch.inference_mode(), bench.route():
        bench.model(draw(2, 12, seed=0))

    found = bench.gradient(bench.route())

    assert_close(found, fresh.gradient(fresh.using("unmerged")))


@pytest.mark.parametrize("apply", ["unmerged", "merged"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_adapted_weights(form: str, apply: ApplyWord) -> None:
    """Whoever differentiates through a served model gets what the dense weights would give."""
    bench, hidden = Bench(form), draw(2, 15, seed=1).requires_grad_()

    with bench.using(apply):
        bench.model.head(hidden).sum().backward()

    assert hidden.grad is not None
    for row, adapter in zip(hidden.grad, bench.adapters, strict=True):
        weight = bench.model.head.weight + 0.5 * adapter.delta_weights()["head.weight"]
        assert_close(row, weight.sum(0))

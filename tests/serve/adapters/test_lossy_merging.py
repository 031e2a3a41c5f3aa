"""Merges that rounding in the base's dtype would spoil."""

import pytest
import torch

import lokr_core
from lokr_core import Adapted, Apply, LossyMergeError
from lokr_serve.adapters import AdapterRegistry, merging
from lokr_serve.metrics import Metrics
from lokr_serve.types import ApplyMode
from tests.serve.adapters.callers import num_merges, resolve
from tests.serve.adapters.conftest import MakeRegistry, Store
from tests.tiny import tiny_llama


@pytest.fixture
def adapted() -> Adapted:
    """A model in low precision."""
    return lokr_core.attach(tiny_llama(torch.bfloat16))


async def lossy(make_registry: MakeRegistry, store: Store, **fields: object) -> AdapterRegistry:
    """Return a registry that knows an adapter of a tiny change."""
    store.write("a", factor=0.03)
    registry = make_registry(**fields)
    await registry.scan()
    return registry


async def test_merged_on_request_is_refused_without_merging_again(
    make_registry: MakeRegistry, store: Store, metrics: Metrics
) -> None:
    """The caller learns how much would be lost, and repeating the request is cheap."""
    registry = await lossy(make_registry, store)

    for _ in range(2):
        with pytest.raises(LossyMergeError, match="allow_lossy_merge"):
            await resolve(registry, ApplyMode.MERGED)

    assert num_merges(metrics) == 1


async def test_auto_stays_unmerged(
    make_registry: MakeRegistry, store: Store, adapted: Adapted, metrics: Metrics
) -> None:
    """A faster way that gives another result is not chosen for the caller."""
    registry = await lossy(make_registry, store)

    await resolve(registry, ApplyMode.AUTO)
    with pytest.raises(LossyMergeError):
        await resolve(registry, ApplyMode.MERGED)  # joins the merge in the background
    applied = {(await resolve(registry, ApplyMode.AUTO))[1] for _ in range(3)}

    assert applied == {Apply.UNMERGED}
    assert num_merges(metrics) == 1
    assert adapted.merges.num_bytes == 0


async def test_an_operator_may_allow_it_for_those_who_ask(
    make_registry: MakeRegistry, store: Store
) -> None:
    """The setting lifts the refusal of a pinned merge; auto still goes unmerged."""
    registry = await lossy(make_registry, store, allow_lossy_merge=True)

    _, pinned = await resolve(registry, ApplyMode.MERGED)
    _, again = await resolve(registry, ApplyMode.MERGED)
    _, auto = await resolve(registry, ApplyMode.AUTO)

    assert (pinned, again, auto) == (Apply.MERGED, Apply.MERGED, Apply.UNMERGED)


async def test_refusals_are_remembered_up_to_a_bound(
    make_registry: MakeRegistry,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Metrics,
) -> None:
    """Callers choose the weights, so the number of refused mixes has no bound of its own."""
    monkeypatch.setattr(merging, "MAX_MIXES", 1)
    registry = await lossy(make_registry, store)

    for weight in (1.0, 0.5, 1.0):
        with pytest.raises(LossyMergeError):
            await resolve(registry, ApplyMode.MERGED, weight=weight)

    assert num_merges(metrics) == 3

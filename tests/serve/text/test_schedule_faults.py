"""A step that fails: who is at fault, and nobody else, pays for it."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.generation.continuous_batching.scheduler import Scheduler

from lokr_core import Apply
from lokr_serve.errors import DeviceMemoryError, EngineStoppedError, GenerationFailedError
from lokr_serve.metrics import Metrics
from tests.serve.text.engines import (
    World,
    alone,
    ask,
    ask_all,
    ask_alone,
    before_forward,
    company,
    generation,
    prompt,
    running,
    value,
)

NEVER = 310  # a token id that no prompt draws


def fail_at(*steps: int) -> Callable[[list[int]], None]:
    """Return a call that raises in the given forwards, counted from 0."""
    count = itertools.count()

    def call(_: list[int]) -> None:
        if next(count) in steps:
            raise RuntimeError("injected")

    return call


@pytest.mark.parametrize("steps", [(0,), (3,), (0, 1), (4, 12)])
async def test_a_step_that_raises_is_made_good_for_everybody(
    world: World, steps: tuple[int, ...]
) -> None:
    """A passing fault shows in no answer: rows go on from prompt and emitted tokens."""
    requests = company(world, temperature=0.9)
    expected = await alone(world, requests)
    metrics = Metrics(version="test")

    with before_forward(world.model, fail_at(*steps)):
        async with running(world.adapted, metrics=metrics, max_step_tokens=32) as engine:
            answers = await ask_all(engine, requests)
            assert engine.health().is_alive

    assert [answer.ids for answer in answers] == expected
    assert value(metrics, "step_failures_total") == len(steps)


def poison(token_id: int, kind: type[RuntimeError] = RuntimeError) -> Callable[[list[int]], None]:
    """Return a call that raises when a token is in the batch."""

    def call(ids: list[int]) -> None:
        if token_id in ids:
            raise kind("injected")

    return call


async def test_only_the_requests_that_cannot_run_alone_fail(world: World) -> None:
    """A poison request must not take its company down, nor another poison one hide it."""
    requests = company(world)
    expected = await alone(world, requests)
    bad = [generation((*prompt(50 + k, 6), NEVER), world.mixes[k], n=1 + k) for k in (0, 1)]

    with before_forward(world.model, poison(NEVER)):
        async with running(world.adapted) as engine:
            answers = await ask_all(engine, [bad[0], *requests, bad[1]])

    assert [answer.ids for answer in answers[1:-1]] == expected
    for answer in (answers[0], answers[-1]):
        assert [type(error) for error in answer.errors] == [GenerationFailedError]


async def test_only_the_request_that_the_device_has_no_memory_for_fails(world: World) -> None:
    """Its caller learns that less would have worked; smaller steps serve the others."""
    requests = company(world)
    expected = await alone(world, requests)
    large = generation((*prompt(50, 6), NEVER))

    with before_forward(world.model, poison(NEVER, torch.OutOfMemoryError)):
        async with running(world.adapted) as engine:
            failed, *answers = await ask_all(engine, [large, *requests])
            assert engine.health().is_alive

    assert [type(error) for error in failed.errors] == [DeviceMemoryError]
    assert [answer.ids for answer in answers] == expected


async def test_memory_that_caches_hold_is_given_back_before_any_request_fails(
    world: World,
) -> None:
    """Merged weights that nobody uses only save time; those of a running request stay."""
    merges, idle, held = world.adapted.merges, world.mixes[1], world.mixes[2]
    for mix in (idle, held):
        merges.put(mix, world.adapted.merge(mix))
    merges.release(idle)
    requests = [*company(world), generation(prompt(90, 6), held, Apply.MERGED, seed=90)]
    expected = await alone(world, requests)
    metrics = Metrics(version="test")

    def call(_: list[int]) -> None:
        if idle in merges:
            raise torch.OutOfMemoryError("injected")

    with before_forward(world.model, call):
        async with running(world.adapted, metrics=metrics) as engine:
            answers = await ask_all(engine, requests)
    num_bytes = merges.num_bytes
    merges.release(held)
    merges.discard_idle()

    assert [answer.ids for answer in answers] == expected
    assert value(metrics, "step_failures_total") == 1
    assert value(metrics, "merge_cache_bytes") == num_bytes > 0


async def test_a_row_may_turn_poisonous_in_decode(world: World) -> None:
    """A fault that comes with a sampled token fails its row then, and leaves what was sent."""
    victim = generation(prompt(60, 6), world.mixes[3])
    sampled = (await ask_alone(world.adapted, victim)).ids
    others = [generation(prompt(61 + k, 6), world.mixes[k]) for k in range(3)]
    expected = await alone(world, others)
    harmless = {*victim.prompt_ids, *(t for ids in expected for t in ids)}
    harmless.update(t for request in others for t in request.prompt_ids)
    token_id = next(t for t in sampled if t not in harmless)
    before = sampled[: sampled.index(token_id) + 1]

    with before_forward(world.model, poison(token_id)):
        async with running(world.adapted) as engine:
            failed, *answers = await ask_all(engine, [victim, *others])

    assert [type(error) for error in failed.errors] == [GenerationFailedError]
    assert failed.tokens[0] == before
    assert [answer.ids for answer in answers] == expected


async def test_only_the_row_whose_logits_are_nan_fails(world: World) -> None:
    """No token can be chosen for it; the rows beside it have theirs."""
    requests = company(world)
    expected = await alone(world, requests)
    broken = generation((*prompt(70, 6), NEVER), world.mixes[1], n=2)
    weight = embedding(world)
    kept = weight[NEVER].clone()
    weight.data[NEVER] = torch.nan

    async with running(world.adapted) as engine:
        failed, *answers = await ask_all(engine, [broken, *requests])
    weight.data[NEVER] = kept

    assert [type(error) for error in failed.errors] == [GenerationFailedError]
    assert [answer.ids for answer in answers] == expected


def embedding(world: World) -> Tensor:
    """Return the model's table of input embeddings."""
    weight = world.model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


async def test_a_broken_device_ends_everything_and_says_so(world: World) -> None:
    """After a device error that sticks nothing can be trusted; the process must be replaced."""

    def call(_: list[int]) -> None:
        raise torch.AcceleratorError("injected")

    with before_forward(world.model, call):
        async with running(world.adapted, max_rows=2) as engine:
            answers = await ask_all(engine, company(world))
            late = await ask(engine, generation(prompt(1, 5)))
            health = engine.health()

    for answer in (*answers, late):
        assert [type(error) for error in answer.errors] == [EngineStoppedError]
    assert health.error == "AcceleratorError"


async def test_a_batch_that_cannot_be_prepared_costs_only_its_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What raises before the forward has no step of its own: every row is a suspect."""
    requests = company(world)
    expected = await alone(world, requests)
    metrics = Metrics(version="test")
    async with running(world.adapted, metrics=metrics) as engine:
        first = await ask(engine, generation(prompt(80, 5)))
        count = itertools.count()
        stock = Scheduler.has_pending_requests

        def raise_sometimes(self: Scheduler) -> bool:
            if stock(self) and next(count) in (0, 9):
                raise RuntimeError("injected")
            return stock(self)

        monkeypatch.setattr(Scheduler, "has_pending_requests", raise_sometimes)
        answers = await ask_all(engine, requests)
        assert engine.health().is_alive

    assert not first.errors
    assert [answer.ids for answer in answers] == expected
    assert value(metrics, "step_failures_total") == 2

"""Rows of many requests in shared steps: each as if alone, whatever happens to a step."""

import asyncio

import pytest

from lokr_core import AdapterMix, Apply
from lokr_serve.metrics import Metrics
from lokr_serve.text.generation import Generation
from lokr_serve.text.seeds import derive_seed
from tests.serve.text.engines import (
    Answer,
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

UNMERGED, MERGED = Apply.UNMERGED, Apply.MERGED


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.1, "top_p": 0.9}, {"repetition_penalty": 1.3}]
)
async def test_a_request_gets_the_same_tokens_alone_and_in_company(
    world: World, sampling: dict[str, float]
) -> None:
    """Neither the mixes of the other rows nor their draws may show in an answer."""
    requests = company(world, **sampling)
    expected = await alone(world, requests)

    async with running(world.adapted, max_step_tokens=24, max_rows=6) as engine:
        answers = await ask_all(engine, requests)

    assert [answer.ids for answer in answers] == expected
    assert len({tuple(ids) for ids in expected[:5]}) == 5, "every mix says something else"


async def test_merged_and_unmerged_rows_share_a_step(merged: World) -> None:
    """The way of application is a row's own; both give the same tokens in float64."""
    pairs = [
        generation(prompt(seed, 9), mix, apply)
        for seed, mix in enumerate(merged.mixes)
        for apply in (UNMERGED, MERGED)
    ]
    metrics = Metrics(version="test")

    async with running(merged.adapted, metrics=metrics, max_step_tokens=128) as engine:
        answers = await ask_all(engine, pairs)

    ids = [answer.ids for answer in answers]
    rows = {way: value(metrics, "rows_total", apply=way) for way in ("merged", "unmerged")}
    assert ids[::2] == ids[1::2]
    assert rows == {"merged": 4 * 8, "unmerged": 6 * 8}  # the base is never merged
    assert value(metrics, "step_mixes_sum") == 9 * 8  # base once, the others both ways


async def test_a_prefix_is_found_again_for_the_same_mix_way_and_salt(merged: World) -> None:
    """A shared prefix is computed once; what was saved is in the usage and the metrics."""
    ids = prompt(1, 21)
    metrics = Metrics(version="test")
    async with running(merged.adapted, metrics=metrics) as engine:
        for mix in merged.mixes:
            for apply, salt in ((UNMERGED, ""), (UNMERGED, "tenant"), (MERGED, "")):
                request = generation(ids, mix, apply, salt=salt)
                first, second = await ask(engine, request), await ask(engine, request)

                expected = 20 if mix.is_base and apply is MERGED else 0  # the base is one way
                assert first.cached == expected
                assert second.cached == 20
                assert first.ids == second.ids

    assert value(metrics, "cached_prompt_tokens_total") == 20 * (15 + 1)


async def test_prefixes_are_not_shared_between_weights_and_versions(world: World) -> None:
    """Other weights, or another version under the same id, are another model."""
    poet = world.mixes[1].parts[0].ref
    mixes = [AdapterMix.of({poet: weight}) for weight in (0.5, 0.25, -0.5)]
    ids = prompt(2, 21)

    async with running(world.adapted) as engine:
        answers = [await ask(engine, generation(ids, mix)) for mix in mixes]

    assert [answer.cached for answer in answers] == [0, 0, 0]
    assert len({tuple(answer.ids) for answer in answers}) == 3


async def test_tokens_found_while_waiting_for_pages_are_counted(world: World) -> None:
    """A row that finds no page at first asks the prefix cache again; the last answer counts."""
    ids = prompt(3, 41)
    async with running(world.adapted, cache_tokens=64) as engine:
        first, second = await ask_all(engine, [generation(ids), generation(ids)])

    assert first.ids == second.ids
    assert {first.cached, second.cached} == {0, 40}


async def test_rows_that_a_small_cache_preempts_get_the_same_tokens(world: World) -> None:
    """A preempted row loses its pages and starts over from what it has."""
    requests = [
        generation(prompt(seed, 9), mix, seed=seed, max_tokens=30, temperature=0.8)
        for seed, mix in enumerate(world.mixes)
    ]
    expected = [(await ask_alone(world.adapted, request)).ids for request in requests]
    lengths: list[int] = []

    with before_forward(world.model, lambda ids: lengths.append(len(ids))):
        async with running(world.adapted, cache_tokens=80) as engine:
            answers = await ask_all(engine, requests)

    assert [answer.ids for answer in answers] == expected
    assert sum(lengths) > 5 * (9 + 29), "no row was computed again, so none was preempted"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_sequences_of_one_request_equal_requests_with_their_seeds(
    world: World, temperature: float
) -> None:
    """With n > 1 each sequence ends once, and its draws come from its own seed alone."""
    ids, mix = prompt(4, 10), world.mixes[2]
    seeds = [derive_seed(11, index) for index in range(3)]
    singles = [generation(ids, mix, seed=seed, temperature=temperature) for seed in seeds]
    expected = await alone(world, singles)

    async with running(world.adapted) as engine:
        answer = await ask(engine, generation(ids, mix, seed=11, n=3, temperature=temperature))

    assert [answer.tokens[index] for index in range(3)] == expected
    assert sorted(answer.finished) == [0, 1, 2]
    assert (len({tuple(one) for one in expected}) == 1) == (temperature == 0)


async def test_a_busy_mix_cannot_starve_another(world: World) -> None:
    """With one row, a request of another mix goes next, not after the whole queue."""
    busy, quiet = world.mixes[1], world.mixes[2]
    order: list[AdapterMix] = []
    started = asyncio.Event()

    async with running(world.adapted, max_rows=1) as engine:

        async def note(request: Generation) -> Answer:
            answer = await ask(engine, request)
            order.append(request.mix)
            started.set()
            return answer

        first = [asyncio.create_task(note(generation(prompt(s, 5), busy))) for s in range(8)]
        await started.wait()
        await note(generation(prompt(20, 5), quiet))
        await asyncio.gather(*first)

    assert order.index(quiet) <= 3


async def test_a_request_of_many_sequences_is_not_passed_by(world: World) -> None:
    """One that needs all rows waits for them at the head of the line, and gets them."""
    async with running(world.adapted, max_rows=3) as engine:
        answers = await ask_all(
            engine,
            [
                generation(prompt(1, 5)),
                generation(prompt(2, 5), n=3),
                generation(prompt(3, 5), world.mixes[1]),
            ],
        )

    assert [len(answer.finished) for answer in answers] == [1, 3, 1]


async def test_gauges_are_back_at_zero_when_all_is_done(world: World) -> None:
    """An idle engine that shows running requests would never be scaled down."""
    metrics = Metrics(version="test")
    async with running(world.adapted, metrics=metrics) as engine:
        await ask_all(engine, company(world))

    assert value(metrics, "requests_running") == 0
    assert value(metrics, "requests_waiting") == 0
    assert value(metrics, "generated_tokens_total") == 80

"""The engine's door: what is refused, what a stream carries, and how requests end early."""

import asyncio

import pytest
import torch
from transformers import PreTrainedModel

import lokr_core
from lokr_core import AdapterMix
from lokr_serve.errors import (
    EngineStoppedError,
    InvalidRequestError,
    SettingsError,
)
from lokr_serve.metrics import Metrics
from lokr_serve.text.engine import TextEngine
from lokr_serve.text.generation import Generation
from lokr_serve.types import Chunk, Finished, FinishReason
from tests.serve.text.engines import (
    World,
    alone,
    ask,
    ask_all,
    ask_alone,
    company,
    generation,
    prompt,
    running,
    text_settings,
)
from tests.tiny import MAX_POSITIONS, VOCAB_SIZE, tiny_gpt2, tiny_llama, tiny_tokenizer


def build(world: World, **settings: object) -> TextEngine:
    """Return an engine that was not started."""
    return TextEngine(
        adapted=world.adapted,
        tokenizer=None,
        settings=text_settings(**settings),
        metrics=Metrics(version="test"),
    )


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (generation(()), "prompt", "is empty"),
        (generation(prompt(1, 21)), "prompt", "has 21 tokens, but the limit is 20"),
        (generation(prompt(1, 3), n=5), "sampling.n", "more than the 4 that run at once"),
        (generation((4, VOCAB_SIZE)), r"token_ids.ids\[1\]", "320 is not below 320"),
        (generation((-1,)), r"token_ids.ids\[0\]", "-1"),
        (generation((4,), stop_token_ids=(5, 999)), r"sampling.stop_token_ids\[1\]", "999"),
    ],
)
def test_what_can_never_run_is_refused_by_field(
    world: World, request_: Generation, field: str, problem: str
) -> None:
    """Any of these inside a step would fail it for everybody; the caller learns which field."""
    engine = build(world, max_prompt_tokens=20, max_rows=4)

    with pytest.raises(InvalidRequestError, match=f"^{field}: .*{problem}"):
        engine.check(request_)


async def test_a_request_that_is_refused_never_reaches_the_engine(world: World) -> None:
    """Generating checks too, so nothing depends on the caller having checked."""
    async with running(world.adapted) as engine:
        answer = await ask(engine, generation(()))

    assert [type(error) for error in answer.errors] == [InvalidRequestError]


def test_a_prompt_is_limited_by_positions_cache_and_setting(world: World) -> None:
    """The smallest of the three counts, and a token of output must still fit."""
    limits = [
        build(world, **settings).prompt_limits.max_prompt_tokens
        for settings in ({}, {"cache_tokens": 64}, {"max_prompt_tokens": 9})
    ]

    assert limits == [MAX_POSITIONS - 1, 64 - 4 - 1, 9]
    assert build(world).prompt_limits.vocab_size == VOCAB_SIZE


def test_a_cache_of_one_page_is_no_cache(world: World) -> None:
    """Every prompt would be refused with a limit below one; the setting is at fault."""
    with pytest.raises(SettingsError, match="cache_tokens"):
        build(world, cache_tokens=4)


async def test_a_sequence_ends_at_the_models_last_position(world: World) -> None:
    """Past it the model has no position; the reply says that the context was the reason."""
    ids = prompt(1, MAX_POSITIONS - 3)

    answer = await ask_alone(world.adapted, generation(ids, max_tokens=50))

    assert len(answer.ids) == 3
    assert answer.finished[0].reason is FinishReason.CONTEXT_LIMIT


async def test_rows_may_fill_the_cache_to_the_announced_limit(world: World) -> None:
    """A row that outgrew the cache would fail its step; several must wait for one another."""
    requests = [generation(prompt(k, 50), seed=k, max_tokens=100) for k in range(3)]
    expected = await alone(world, requests)

    async with running(world.adapted, cache_tokens=64) as engine:
        answers = await ask_all(engine, requests)

    assert [answer.ids for answer in answers] == [ids[:10] for ids in expected]
    reasons = {answer.finished[0].reason for answer in answers}
    assert reasons == {FinishReason.CONTEXT_LIMIT}


async def test_more_rows_than_tokens_in_a_step_take_turns(world: World) -> None:
    """The step's limit is on tokens; rows beyond it wait, and get the same tokens."""
    requests = company(world)
    expected = await alone(world, requests)

    async with running(world.adapted, max_rows=10, max_step_tokens=4) as engine:
        answers = await ask_all(engine, requests)

    assert [answer.ids for answer in answers] == expected


async def test_eos_ends_a_sequence_unless_it_is_ignored(world: World) -> None:
    """The model's generation config says which tokens end; one id or several."""
    ids = prompt(3, 8)
    plain = (await ask_alone(world.adapted, generation(ids))).ids
    config = world.model.generation_config
    assert config is not None
    before = config.eos_token_id
    config.eos_token_id = [plain[4], -1]

    async with running(world.adapted) as engine:
        ended, ignored = await ask_all(engine, [generation(ids, ignore_eos=False), generation(ids)])
    config.eos_token_id = before

    assert ended.ids == plain[: plain.index(plain[4]) + 1]
    assert ended.finished[0].reason is FinishReason.EOS
    assert ignored.ids == plain


@pytest.mark.parametrize("has_tokenizer", [True, False])
async def test_the_tokenizer_says_what_ends_if_the_model_does_not(has_tokenizer: bool) -> None:
    """Many model folders have no generation config; without a tokenizer nothing ends early."""
    model = tiny_llama(torch.float64)
    model.generation_config = None  # type: ignore[assignment]
    tokenizer = tiny_tokenizer() if has_tokenizer else None
    model.get_output_embeddings().weight.data.zero_()  # every logit is equal: id 0 is taken
    if tokenizer is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)

    async with running(lokr_core.attach(model), tokenizer) as engine:
        answer = await ask(engine, generation(prompt(1, 4), ignore_eos=False))

    assert answer.ids == ([0] if has_tokenizer else [0] * 8)


async def test_a_stop_string_ends_the_text_across_a_token_border(world: World) -> None:
    """Text ends before the stop string, wherever its tokens begin; the tokens stay whole."""
    ids, tokenizer = prompt(5, 8), tiny_tokenizer()
    async with running(world.adapted, tokenizer) as engine:
        plain = await ask(engine, generation(ids, max_tokens=24))
        pieces = [str(tokenizer.decode([token_id])) for token_id in plain.ids]
        place = next(i for i in range(8, 23) if all(p.isascii() and p for p in pieces[i : i + 2]))
        stop = pieces[place][-1] + pieces[place + 1][0]
        stopped = await ask(engine, generation(ids, max_tokens=24, stop=(stop,)))

    assert stopped.texts[0] == plain.texts[0][: plain.texts[0].index(stop)]
    assert stopped.finished[0].stop == stop
    assert stopped.finished[0].reason is FinishReason.STOP_SEQUENCE
    assert stopped.ids == plain.ids[: len(stopped.ids)]
    assert len(stopped.ids) <= place + 2


async def test_nothing_ends_before_min_tokens(world: World) -> None:
    """Stop tokens are barred until then, and end the sequence after."""
    ids = prompt(6, 8)
    plain = (await ask_alone(world.adapted, generation(ids))).ids
    stops = tuple(plain)

    async with running(world.adapted) as engine:
        early, late = await ask_all(
            engine,
            [
                generation(ids, stop_token_ids=stops),
                generation(ids, stop_token_ids=stops, min_tokens=3, max_tokens=40),
            ],
        )

    assert early.ids == plain[:1]
    assert early.finished[0].stop == plain[0]
    assert len(late.ids) >= 3
    assert not set(late.ids[:3]) & set(stops)


async def test_log_probabilities_come_with_their_tokens(world: World) -> None:
    """They are of the model's own distribution, one for each token of the chunk."""
    async with running(world.adapted) as engine:
        request = generation(prompt(7, 5), logprobs=2)
        chunks = [event async for event in engine.generate(request) if isinstance(event, Chunk)]

    pairs = [(c.token_ids, tuple(p.token_id for p in c.logprobs)) for c in chunks]
    assert all(ids == named for ids, named in pairs)
    assert all(len(p.top) == 2 and p.logprob <= 0 for c in chunks for p in c.logprobs)


async def test_a_slow_reader_gets_the_rest_as_one_chunk(world: World) -> None:
    """Nothing is lost and nothing piles up while a client does not read."""
    request = generation(prompt(8, 5), max_tokens=12)
    expected = (await ask_alone(world.adapted, request)).ids
    async with running(world.adapted) as engine:
        stream = engine.generate(request)
        first = await anext(stream)
        await ask(engine, generation(prompt(9, 5), max_tokens=30))  # ends well after
        rest = [event async for event in stream]

    assert isinstance(first, Chunk)
    chunk, finished = rest
    assert isinstance(chunk, Chunk)
    assert isinstance(finished, Finished)
    assert [*first.token_ids, *chunk.token_ids] == expected


async def test_closing_the_stream_early_cancels_the_request(world: World) -> None:
    """A caller that has seen enough closes the iterator; the row is free for the next."""
    endless = generation(prompt(33, 5), max_tokens=100_000)
    async with running(world.adapted, max_rows=1) as engine:
        stream = engine.generate(endless)
        await anext(stream)
        await stream.aclose()
        answer = await ask(engine, generation(prompt(34, 5)))

    assert len(answer.ids) == 8


async def test_stop_before_start_ends_what_was_sent(world: World) -> None:
    """A server that fails while it starts must not leave callers hanging."""
    engine = build(world)
    task = asyncio.create_task(ask(engine, generation(prompt(1, 5))))
    await asyncio.sleep(0)  # lets the task send its request

    await engine.stop()
    answer = await task

    assert [type(error) for error in answer.errors] == [EngineStoppedError]


async def test_a_model_whose_head_no_adapter_can_change_is_served(world: World) -> None:
    """GPT-2's head is tied to its embeddings; rows must still be told apart in front of it."""
    model: PreTrainedModel = tiny_gpt2(torch.float64)
    requests = [generation(prompt(k, 3 + k), AdapterMix()) for k in range(4)]
    adapted = lokr_core.attach(model)
    expected = [(await ask_alone(adapted, request)).ids for request in requests]

    async with running(adapted) as engine:
        answers = await ask_all(engine, requests)

    assert [answer.ids for answer in answers] == expected

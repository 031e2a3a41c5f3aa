"""One sequence: its pieces, its end and its figures."""

from dataclasses import replace

import pytest
import torch

from lokr_serve.text.sampling import Sampled, sample
from lokr_serve.text.seeds import derive_seed
from lokr_serve.text.sequence import Advance, SequenceSpec, SequenceState
from lokr_serve.types import Finished, FinishReason, SamplingParams, TokenLogprob, Usage
from tests.tiny import MAX_POSITIONS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS_ID = 1


def ids_of(text: str) -> list[int]:
    """Encode without special tokens."""
    return list(TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids)


SPEC = SequenceSpec(
    index=2,
    prompt_ids=(0, *ids_of("The quick ")),
    sampling=SamplingParams(),
    seed=5,
    eos_ids=frozenset({EOS_ID}),
    max_positions=MAX_POSITIONS,
    accepted_at=100.0,
)


def a_sequence(spec: SequenceSpec = SPEC, **sampling: object) -> SequenceState:
    """Return a sequence that has left the queue."""
    params = replace(SamplingParams(), **sampling)  # type: ignore[arg-type]
    state = SequenceState(replace(spec, sampling=params), TOKENIZER)
    state.begin(100.5)
    return state


def run(state: SequenceState, ids: list[int]) -> tuple[str, list[int], Finished | None]:
    """Feed tokens until the sequence ends; return text, token ids and the end."""
    text = ""
    sent: list[int] = []
    for token_id in ids:
        advance = state.advance(Sampled(token_id=token_id), 101.0)
        text += advance.chunk.text
        sent += advance.chunk.token_ids
        if advance.finished is not None:
            return text, sent, advance.finished
    return text, sent, None


def ending(finished: Finished | None) -> tuple[FinishReason, str | int | None]:
    """Return the reason and the matched stop of an end that must be there."""
    assert finished is not None
    return finished.reason, finished.stop


def test_each_token_gives_a_chunk_with_its_text() -> None:
    """Streams are as fine as the tokens; the index says which of the n sequences it is."""
    state = a_sequence()
    ids = ids_of("fox")

    advances = [state.advance(Sampled(token_id=token_id), 101.0) for token_id in ids]

    assert "".join(advance.chunk.text for advance in advances) == "fox"
    assert [advance.chunk.token_ids for advance in advances] == [(id_,) for id_ in ids]
    assert {advance.chunk.index for advance in advances} == {2}
    assert all(advance.finished is None for advance in advances)
    assert list(state.output_ids) == ids
    assert not state.is_finished


def test_eos_ends_the_sequence_and_has_no_text() -> None:
    """Its id is sent, since it was sampled."""
    ids = [*ids_of("fox"), EOS_ID]
    state = a_sequence()

    text, sent, finished = run(state, [*ids, 50])

    assert (text, sent) == ("fox", ids)
    assert ending(finished) == (FinishReason.EOS, None)
    assert state.is_finished


def test_ignored_eos_is_a_token_like_any_other() -> None:
    """Benchmarks need outputs of a given length."""
    text, _, finished = run(a_sequence(ignore_eos=True, max_tokens=4), [EOS_ID, *ids_of("fox")])

    assert text == "fox"
    assert ending(finished) == (FinishReason.MAX_TOKENS, None)


def test_stop_token_ends_the_sequence_and_is_named() -> None:
    """Its text is left out, as that of a stop string is."""
    stop_id = ids_of("z")[0]

    text, sent, finished = run(a_sequence(stop_token_ids=(stop_id,)), [*ids_of("fo"), stop_id])

    assert text == "fo"
    assert sent[-1] == stop_id
    assert ending(finished) == (FinishReason.STOP_SEQUENCE, stop_id)


def test_stop_string_ends_the_sequence_across_tokens() -> None:
    """Text ends before it, while the ids of the tokens that make it are sent."""
    ids = ids_of("one dog! two")

    text, sent, finished = run(a_sequence(stop=("og! t", "never")), ids)

    assert text == "one d"
    assert sent == ids[: len(sent)]
    assert ending(finished) == (FinishReason.STOP_SEQUENCE, "og! t")


def test_text_held_back_for_a_stop_string_is_sent_when_the_sequence_ends() -> None:
    """What might have become a stop string is ordinary text after all."""
    ids = ids_of("abc")

    for params, tokens in (
        ({"max_tokens": len(ids)}, ids),
        ({}, [*ids, EOS_ID]),
        ({"stop_token_ids": (7,)}, [*ids, 7]),
    ):
        text, _, finished = run(a_sequence(stop=("bcd",), **params), tokens)

        assert text == "abc"
        assert finished is not None


def test_stop_string_on_the_last_allowed_token_counts() -> None:
    """Both reasons hold; the caller learns the one that it asked for."""
    ids = ids_of("abc")

    text, _, finished = run(a_sequence(stop=("bc",), max_tokens=len(ids)), ids)

    assert text == "a"
    assert ending(finished) == (FinishReason.STOP_SEQUENCE, "bc")


def test_stop_string_completed_by_the_flush_of_half_a_character_counts() -> None:
    """The search covers all text that would be sent, the very last of it included."""
    half = ids_of("🚀")[:-1]

    text, _, finished = run(
        a_sequence(stop=("a\N{REPLACEMENT CHARACTER}",)), [*ids_of("xa"), *half, EOS_ID]
    )

    assert text == "x"
    assert ending(finished) == (FinishReason.STOP_SEQUENCE, "a\N{REPLACEMENT CHARACTER}")


def test_half_a_character_is_flushed_at_the_end() -> None:
    """Otherwise text and tokens would not tell the same."""
    half = ids_of("🚀")[:-1]

    text, _, _ = run(a_sequence(max_tokens=len(half)), half)

    assert text == "\N{REPLACEMENT CHARACTER}"


def test_max_tokens_ends_the_sequence() -> None:
    """The caller's own limit."""
    _, sent, finished = run(a_sequence(max_tokens=3), [50] * 9)

    assert len(sent) == 3
    assert ending(finished) == (FinishReason.MAX_TOKENS, None)


def test_context_limit_ends_the_sequence_when_the_positions_are_used_up() -> None:
    """The model has no position for another token; max_tokens does not hide it."""
    spec = replace(SPEC, max_positions=len(SPEC.prompt_ids) + 4)

    _, sent, finished = run(a_sequence(spec), [50] * 9)

    assert len(sent) == 4
    assert ending(finished) == (FinishReason.CONTEXT_LIMIT, None)


def test_stop_string_before_min_tokens_is_ordinary_text() -> None:
    """The caller asked for that many tokens at least."""
    ids = [*ids_of("z"), *ids_of("q")] * 2

    text, sent, finished = run(a_sequence(stop=("zq",), min_tokens=3), ids)

    assert text == "zq"
    assert sent == ids
    assert ending(finished) == (FinishReason.STOP_SEQUENCE, "zq")


def test_logprobs_travel_with_their_token() -> None:
    """One for each token of the chunk."""
    logprob = TokenLogprob(token_id=50, logprob=-0.5)

    advance = a_sequence().advance(Sampled(token_id=50, logprob=logprob), 101.0)

    assert advance.chunk.logprobs == (logprob,)


def test_usage_and_timing_are_measured_from_acceptance() -> None:
    """A sequence that was put back and started over keeps the time at which it first began."""
    state = a_sequence(max_tokens=2)
    state.cached_prompt_tokens = 3
    state.begin(104.0)
    state.advance(Sampled(token_id=50), 101.0)

    finished = state.advance(Sampled(token_id=51), 103.0).finished

    assert finished is not None
    assert finished.usage == Usage(
        prompt_tokens=len(SPEC.prompt_ids), cached_prompt_tokens=3, completion_tokens=2
    )
    assert finished.timing.queue_seconds == 0.5
    assert finished.timing.first_token_seconds == 1.0
    assert finished.timing.total_seconds == 3.0
    assert finished.index == 2


def test_sampler_row_follows_the_sequence() -> None:
    """It is built once and must see each new token: the position of the draw is their number."""
    state = a_sequence(stop_token_ids=(9,), repetition_penalty=50.0, temperature=0.0)
    row = state.sampler_row()
    logits = torch.zeros(1, 320)
    logits[0, 50], logits[0, 51], logits[0, SPEC.prompt_ids[1]] = 3.0, 2.0, 4.0

    sampled = []
    for _ in range(2):
        (result,) = sample(logits, [row])
        assert isinstance(result, Sampled)
        sampled.append(result.token_id)
        state.advance(result, 101.0)

    assert sampled == [50, 51]  # the prompt's token and then 50 are penalised
    assert row.seed == derive_seed(5, 2)
    assert row.end_ids == {EOS_ID, 9}
    assert state.sampler_row() is row


def test_ignored_eos_is_not_barred() -> None:
    """It does not end the sequence, so min_tokens has nothing against it."""
    state = a_sequence(ignore_eos=True, min_tokens=5, stop_token_ids=(9,))

    assert state.sampler_row().end_ids == {9}


def test_sequence_without_a_tokenizer_sends_token_ids_alone() -> None:
    """A model folder without a tokenizer is served so."""
    state = SequenceState(SPEC, None)
    state.begin(100.0)

    text, sent, finished = run(state, [50, 51, EOS_ID])

    assert (text, sent) == ("", [50, 51, EOS_ID])
    assert ending(finished) == (FinishReason.EOS, None)


def test_ended_sequence_takes_no_more_tokens() -> None:
    """One more would be our own bug: two ends for one sequence."""
    state = a_sequence(max_tokens=1)
    assert isinstance(state.advance(Sampled(token_id=50), 101.0), Advance)

    with pytest.raises(AssertionError, match="ended"):
        state.advance(Sampled(token_id=51), 102.0)

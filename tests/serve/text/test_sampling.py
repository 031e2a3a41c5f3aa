"""The sampler: what each setting does, and that a row never depends on its neighbours."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from lokr_serve.errors import NumericsError
from lokr_serve.text import sampling
from lokr_serve.text.sampling import Sampled, SamplerRow, sample
from lokr_serve.types import SamplingParams

VOCAB_SIZE = 61  # odd, so that rows lie at different alignments

IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 5, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.3, 0.95]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, -1.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4, 2.0]),
    min_tokens=st.sampled_from([0, 0, 3]),
    logprobs=st.sampled_from([None, None, 0, 3]),
)
ROWS = st.builds(
    SamplerRow,
    params=PARAMS,
    seed=st.integers(0, 2**64 - 1),
    prompt_ids=IDS,
    output_ids=IDS,
    end_ids=st.frozensets(st.integers(0, VOCAB_SIZE + 5), max_size=3),
)


def a_row(
    params: SamplingParams, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()
) -> SamplerRow:
    """Return a row with a fixed seed and one end token, 0."""
    return SamplerRow(
        params=params, seed=11, prompt_ids=prompt, output_ids=output, end_ids=frozenset({0})
    )


def greedy(**fields: float) -> SamplingParams:
    """Return greedy parameters."""
    return replace(SamplingParams(temperature=0), **fields)  # type: ignore[arg-type]


def token_of(logits: list[float], row: SamplerRow) -> int:
    """Sample one row."""
    (sampled,) = sample(torch.tensor([logits], dtype=torch.float64), [row])
    assert isinstance(sampled, Sampled)
    return sampled.token_id


def random_logits(seed: int, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Return logits that have ties where the dtype is coarse."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, VOCAB_SIZE, generator=generator) * 3).to(dtype)


@settings(max_examples=150)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=7),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    max_elements=st.sampled_from([VOCAB_SIZE, 3 * VOCAB_SIZE, 1 << 21]),
    data=st.data(),
)
def test_result_of_a_row_is_bit_identical_in_any_batch(
    rows: list[SamplerRow],
    seed: int,
    dtype: torch.dtype,
    max_elements: int,
    data: st.DataObject,
) -> None:
    """The promise of the server: who else is in the batch never changes a reply."""
    logits = random_logits(seed, len(rows), dtype)
    alone = [sample(logits[n : n + 1].clone(), [row])[0] for n, row in enumerate(rows)]
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "MAX_WORK_ELEMENTS", max_elements)
        together = sample(logits[order], [rows[n] for n in order])

    assert together == [alone[n] for n in order]


@given(row=ROWS, seed=st.integers(0, 10_000))
def test_logits_are_not_changed(row: SamplerRow, seed: int) -> None:
    """The engine may sample a row again after a step that failed."""
    logits = random_logits(seed, 3, torch.float64)
    before = logits.clone()

    sample(logits, [row] * 3)

    assert torch.equal(logits, before)


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    """Ties are common in bfloat16, and must not depend on how a reduction is split."""
    assert token_of([0.0, 2.0, 1.0, 2.0, 2.0], a_row(greedy())) == 1


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    """Over prompt and output: positive logits are divided, negative ones multiplied."""
    logits = random_logits(4, 1, torch.float64)
    prompt, output = (3, 9, 9, 20), (5, 3, 41)
    peer = RepetitionPenaltyLogitsProcessor(penalty)
    expected = peer(torch.tensor([[*prompt, *output]]), logits.clone())

    token_id = token_of(
        logits[0].tolist(), a_row(greedy(repetition_penalty=penalty), prompt, output)
    )

    assert token_id == int(expected.argmax())


def test_repetition_penalty_counts_a_token_once() -> None:
    """It asks whether a token came, not how often: 4 / 2 stays above 1.5."""
    row = a_row(greedy(repetition_penalty=2.0), prompt=(1, 1, 1), output=(1, 1))

    assert token_of([0.0, 4.0, 1.5], row) == 1


def test_repetition_penalty_makes_a_negative_logit_smaller() -> None:
    """Dividing it would favour what came before."""
    row = a_row(greedy(repetition_penalty=2.0), prompt=(1,))

    assert token_of([-5.0, -1.0, -1.5], row) == 2


def test_presence_penalty_is_subtracted_once_for_output_tokens() -> None:
    """Tokens of the prompt are not output, however often they came."""
    params = greedy(presence_penalty=1.0)

    assert token_of([0.0, 4.0, 3.5], a_row(params, output=(1, 1, 1, 1))) == 2
    assert token_of([0.0, 4.0, 2.5], a_row(params, output=(1, 1, 1, 1))) == 1
    assert token_of([0.0, 4.0, 3.5], a_row(params, prompt=(1, 1))) == 1


def test_frequency_penalty_is_subtracted_for_each_time() -> None:
    """Three times 0.5 is more than the 1.2 between the two."""
    params = greedy(frequency_penalty=0.5)

    assert token_of([0.0, 4.0, 2.8], a_row(params, output=(1, 1))) == 1
    assert token_of([0.0, 4.0, 2.8], a_row(params, output=(1, 1, 1))) == 2
    assert token_of([0.0, 4.0, 2.8], a_row(params, prompt=(1, 1, 1))) == 1


def test_penalties_reach_drawn_tokens_too() -> None:
    """A large enough penalty takes all of the probability away."""
    row = a_row(SamplingParams(repetition_penalty=100.0, top_p=0.9), prompt=(1,))

    assert token_of([-9.0, 50.0, 49.0], row) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_end_tokens_are_barred_until_min_tokens_are_there(temperature: float) -> None:
    """The bar ends exactly when the sequence is long enough; drawn and greedy alike."""
    params = SamplingParams(temperature=temperature, min_tokens=2)
    logits = [60.0, 20.0, 1.0]

    assert token_of(logits, a_row(params, output=(2,))) == 1
    assert token_of(logits, a_row(params, output=(2, 2))) == 0


def test_draw_depends_on_seed_and_position() -> None:
    """Both must matter, or sequences would repeat each other or themselves."""
    logits = torch.zeros(1, 1000)
    row = a_row(SamplingParams())

    def draw_of(row: SamplerRow) -> Sampled | NumericsError:
        return sample(logits, [row])[0]

    assert draw_of(row) == draw_of(row)
    assert draw_of(row) != draw_of(replace(row, seed=12))
    assert draw_of(row) != draw_of(replace(row, output_ids=(5,)))


def test_logprobs_are_of_the_distribution_before_penalties_and_temperature() -> None:
    """They say what the model thinks, so they can be compared between requests."""
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    exact = torch.log_softmax(logits, dim=-1)[0].tolist()
    row = a_row(greedy(presence_penalty=2.0, logprobs=2), output=(1,))

    (sampled,) = sample(logits, [row])

    assert isinstance(sampled, Sampled)
    assert sampled.token_id == 2
    assert sampled.logprob is not None
    assert sampled.logprob.token_id == 2
    assert sampled.logprob.logprob == pytest.approx(exact[2], abs=1e-14)
    assert [one.token_id for one in sampled.logprob.top] == [1, 2]
    assert [one.logprob for one in sampled.logprob.top] == pytest.approx(exact[1:], abs=1e-14)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("params", [greedy(), SamplingParams(logprobs=1, presence_penalty=1.0)])
def test_row_that_is_not_finite_fails_alone(bad: float, params: SamplingParams) -> None:
    """One adapter with an overflow must not take the batch with it; even one bad logit counts."""
    logits = random_logits(8, 3, torch.float32)
    expected = sample(logits[[0, 2]], [a_row(params)] * 2)
    logits[1, 17] = bad

    first, second, third = sample(logits, [a_row(params)] * 3)

    assert [first, third] == expected
    assert isinstance(second, NumericsError)
    assert second.row == 1
    assert "row 1" in str(second)


def test_row_with_every_token_barred_fails() -> None:
    """Nothing is left to choose, and choosing a barred token would break the promise."""
    (sampled,) = sample(torch.zeros(1, 1), [a_row(greedy(min_tokens=1))])

    assert isinstance(sampled, NumericsError)


def test_masked_vocabulary_is_no_fault() -> None:
    """Some models set the logits of padding tokens to minus infinity."""
    assert token_of([-torch.inf, 1.0, -torch.inf], a_row(SamplingParams(top_k=2))) == 1


def test_no_rows_give_no_tokens() -> None:
    """A step may end without a sequence to sample for."""
    assert sample(torch.zeros(0, 8), []) == []

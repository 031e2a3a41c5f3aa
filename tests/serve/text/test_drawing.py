"""Drawing tokens, held against plain definitions and against transformers' own filters."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lokr_serve.text.drawing import NUCLEUS_TOKENS, draw
from lokr_serve.text.seeds import uniform
from lokr_serve.types import SamplingParams

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 3, 20, 10_000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)


def random_logits(seed: int, num_rows: int, vocab_size: int) -> Tensor:
    """Return logits without ties, as peaked as those of a language model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, dtype=torch.float64, generator=generator) * 3


def peer_draw(logits: Tensor, params: SamplingParams, u: float) -> int:
    """Draw one token with transformers' filters, in the order in which it chains them."""
    filters = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k > 0:
        filters.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        filters.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        filters.append(MinPLogitsWarper(params.min_p))
    kept = filters(torch.LongTensor([[0]]), torch.DoubleTensor(logits[None]))
    reached = torch.softmax(kept, dim=-1).cumsum(dim=-1)[0]
    return int(torch.searchsorted(reached, u * reached[-1], right=True))


@given(seed=st.integers(0, 10_000), params=st.lists(PARAMS, min_size=1, max_size=6))
def test_draws_are_those_of_the_filters_of_transformers(
    seed: int, params: list[SamplingParams]
) -> None:
    """Clients bring their settings from elsewhere and expect them to mean the same."""
    logits = random_logits(seed, len(params), 300)
    draws = [uniform(seed, row) for row in range(len(params))]

    ids = draw(logits.clone(), params, draws)

    assert ids == [peer_draw(*row) for row in zip(logits, params, draws, strict=True)]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(), {0, 1, 2, 3}),
        (SamplingParams(top_k=2), {0, 1, 3}),  # the second and third are equal
        (SamplingParams(top_p=0.35), {0}),
        (SamplingParams(top_p=0.5), {0, 1, 3}),
        (SamplingParams(min_p=0.5), {0, 1, 3}),
        (SamplingParams(min_p=0.75), {0}),
        (SamplingParams(top_k=1, top_p=0.9, min_p=0.1), {0}),
        (SamplingParams(top_k=3, top_p=0.6), {0, 1, 3}),  # 0.4 of 0.8 left is not enough
    ],
)
def test_filters_keep_what_their_definitions_say(params: SamplingParams, kept: set[int]) -> None:
    """Hand-computed cases, ties included: as probable as the last one kept is kept."""
    logits = torch.tensor([[0.4, 0.25, 0.1, 0.25]], dtype=torch.float64).log()
    draws = [step / 400 for step in range(400)]

    ids = draw(logits.repeat(400, 1), [params] * 400, draws)

    assert set(ids) == kept


def test_draws_follow_the_distribution() -> None:
    """Over many seeds each token comes as often as its probability says."""
    logits = random_logits(1, 1, 12)
    params = SamplingParams(temperature=1.3, top_k=8)
    num_draws = 20_000
    draws = [uniform(seed, 5) for seed in range(num_draws)]
    kept = torch.where(logits < logits.topk(8).values[:, -1:], -torch.inf, logits)
    expected = torch.softmax(kept / 1.3, dim=-1)[0].tolist()

    counts = Counter(draw(logits.repeat(num_draws, 1), [params] * num_draws, draws))

    for token_id, share in enumerate(expected):
        assert abs(counts[token_id] - share * num_draws) <= 5 * (share * num_draws) ** 0.5


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999_999_999])
def test_nucleus_wider_than_the_short_list_is_found(top_p: float) -> None:
    """A flat distribution needs the sort that a peaked one is spared."""
    vocab_size = 4 * NUCLEUS_TOKENS
    logits = random_logits(3, 2, vocab_size) / 30
    params = SamplingParams(top_p=top_p)
    draws = [0.001, 0.999]

    ids = draw(logits.clone(), [params] * 2, draws)

    assert ids == [peer_draw(row, params, u) for row, u in zip(logits, draws, strict=True)]


def test_smallest_and_largest_draws_stay_inside_the_vocabulary() -> None:
    """The ends of the interval are where an off-by-one or a rounding would show."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]], dtype=torch.float64)

    ids = draw(logits.repeat(2, 1), [SamplingParams()] * 2, [0.0, 1 - 2.0**-53])

    assert ids == [1, 2]


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6])
def test_tiny_temperature_takes_the_largest_logit(temperature: float) -> None:
    """Any temperature above 0 is allowed, so none may overflow to NaN."""
    logits = torch.tensor([[-700.0, 800.0, 799.0, -torch.inf]], dtype=torch.float64)

    assert draw(logits, [SamplingParams(temperature=temperature)], [0.999]) == [1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_row_without_a_finite_largest_logit_gives_no_token(bad: float) -> None:
    """It is reported for that row alone; the row beside it is drawn as ever."""
    logits = torch.zeros(2, 8, dtype=torch.float64)
    logits[0] = bad

    first, second = draw(logits, [SamplingParams(top_p=0.9, min_p=0.1)] * 2, [0.5, 0.5])

    assert first == -1
    assert second == 4

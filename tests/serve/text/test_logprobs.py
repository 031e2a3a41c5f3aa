"""Log-probabilities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lokr_serve.text.logprobs import token_logprobs
from lokr_serve.types import TokenLogprob, TopLogprob


def plain_logprobs(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Sort all of one row the plain way, by value and then by id."""
    values: list[float] = torch.log_softmax(logits[None], dim=-1)[0].tolist()
    best = sorted(range(len(values)), key=lambda id_: (-values[id_], id_))[:num_top]
    top = tuple(TopLogprob(token_id=id_, logprob=values[id_]) for id_ in best)
    return TokenLogprob(token_id=token_id, logprob=values[token_id], top=top)


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(-3, 3), min_size=9, max_size=9),
            st.integers(0, 8),
            st.integers(0, 12),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_best_tokens_come_by_value_and_then_by_id(
    rows: list[tuple[list[int], int, int]],
) -> None:
    """Whole numbers make many ties; how a batch is put together must not reorder them."""
    logits = torch.tensor([row[0] for row in rows], dtype=torch.float32)

    values = token_logprobs(logits, [row[1] for row in rows], [row[2] for row in rows])

    assert values == [
        plain_logprobs(row, token_id, num_top)
        for row, (_, token_id, num_top) in zip(logits, rows, strict=True)
    ]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)],
)
def test_logprobs_are_of_the_normalised_distribution(dtype: torch.dtype, tolerance: float) -> None:
    """They are computed in float32 or better, whatever the model computes in."""
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.25]], dtype=dtype)
    exact = torch.log_softmax(logits.to(torch.float64), dim=-1)[0].tolist()

    (value,) = token_logprobs(logits, [1], [4])

    assert value.logprob == pytest.approx(exact[1], abs=tolerance)
    assert [one.token_id for one in value.top] == [2, 0, 3, 1]
    assert {one.token_id: one.logprob for one in value.top} == pytest.approx(
        dict(enumerate(exact)), abs=tolerance
    )


def test_no_alternatives_are_listed_unless_asked_for() -> None:
    """Zero asks for the sampled token's own log-probability alone."""
    (value,) = token_logprobs(torch.zeros(1, 4), [3], [0])

    assert value.logprob == pytest.approx(-1.3862944)
    assert value.top == ()

"""The batched products are a faster copy of the definitions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lokr_core.ops.batched import batched
from lokr_core.ops.torch_ops import delta_weight
from lokr_core.weights import HadamardWeights, LokrWeights
from tests.core.factors import draw, lokr_weights, low_rank

ENTRIES, ROWS = st.shared(st.integers(1, 4), key="entries"), st.integers(1, 5)


@given(
    weights=ENTRIES.flatmap(lokr_weights), num_entries=ENTRIES, rows=ROWS, is_strided=st.booleans()
)
def test_batched_products_equal_dense_deltas(
    weights: LokrWeights, num_entries: int, rows: int, is_strided: bool
) -> None:
    """E adapters with L rows each, for every form, odd sizes and activations of any stride."""
    num_out, num_in = weights.shape
    wide = draw(num_entries * rows, 2 * num_in, seed=rows)
    x = wide[:, ::2] if is_strided else wide[:, :num_in].contiguous()
    dense = delta_weight(weights, torch.float64)  # [E, O, I]
    wanted = (x.reshape(num_entries, rows, num_in) @ dense.mT).flatten(0, 1)
    out = torch.ones(num_entries * rows, num_out, dtype=torch.float64)

    batched(weights).add_to(out, x)

    torch.testing.assert_close(out, 1 + wanted)
    torch.testing.assert_close(batched(weights).product(x), wanted)


@given(num_entries=st.integers(1, 3), rows=ROWS, rank=st.integers(1, 4))
def test_batched_hadamard_equals_dense_deltas(num_entries: int, rows: int, rank: int) -> None:
    """A LoHa that is too large for Khatri-Rao factors goes through the same door."""
    weights = HadamardWeights(
        left=low_rank(5, 3, rank, 0, num_entries),
        right=low_rank(5, 3, rank, 5, num_entries),
        scale=-0.5,
    )
    x = draw(num_entries * rows, 3, seed=rows)
    dense = delta_weight(weights, torch.float64)
    wanted = (x.view(num_entries, rows, 3) @ dense.mT).flatten(0, 1)
    out = torch.ones(num_entries * rows, 5, dtype=torch.float64)

    batched(weights).add_to(out, x)

    torch.testing.assert_close(out, 1 + wanted)
    torch.testing.assert_close(batched(weights).product(x), wanted)

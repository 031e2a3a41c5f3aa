"""Any factors that multiply out to the module's shape give scale times their Kronecker product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lokr_core.formats import read_adapter
from lokr_core.formats.tensors import is_finite
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import draw, write

SIZES = st.integers(1, 6)
RANKS = st.none() | st.integers(1, 7)  # None is a full factor
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


@st.composite
def factors(data: st.DrawFn, leaf: str, seed: int) -> dict[str, Tensor]:
    """Draw a factor, full or low-rank."""
    rows, cols, rank = data(SIZES), data(SIZES), data(RANKS)
    if rank is None:
        return {leaf: draw(rows, cols, seed=seed)}
    return {
        f"{leaf}_a": draw(rows, rank, seed=seed),
        f"{leaf}_b": draw(rank, cols, seed=seed + 1),
    }


def dense(parts: list[Tensor]) -> Tensor:
    """Return a factor as one matrix, float64."""
    matrices = [part.double() for part in parts]
    return matrices[0] if len(matrices) == 1 else matrices[0] @ matrices[1]


@given(
    w1=factors("lokr_w1", seed=1),
    w2=factors("lokr_w2", seed=3),
    alpha=st.floats(0.125, 50, width=16),
    dtype=DTYPES,
)
def test_lokr_of_any_form_is_scale_times_the_kronecker_product(
    tmp_path_factory: pytest.TempPathFactory,
    w1: dict[str, Tensor],
    w2: dict[str, Tensor],
    alpha: float,
    dtype: torch.dtype,
) -> None:
    """No shape is derived from a factor, so none can be derived wrongly."""
    stored = {leaf: tensor.to(dtype) for leaf, tensor in {**w1, **w2}.items()}
    left, right = dense([stored[leaf] for leaf in w1]), dense([stored[leaf] for leaf in w2])
    num_out, num_in = left.shape[0] * right.shape[0], left.shape[1] * right.shape[1]
    base = nn.Module()
    base.proj = nn.Linear(num_in, num_out, bias=False, dtype=torch.float64)
    tensors = {f"proj.{leaf}": tensor for leaf, tensor in stored.items()}
    tensors["proj.alpha"] = torch.tensor(alpha)
    ranks = [stored[leaf].shape[0] for leaf in ("lokr_w2_b", "lokr_w1_b") if leaf in stored]
    scale = alpha / ranks[0] if ranks else 1.0

    adapter = read_adapter(write(tmp_path_factory.mktemp("a"), tensors), discover(base))

    delta = adapter.delta_weights()["proj.weight"]
    torch.testing.assert_close(delta, scale * torch.kron(left, right), rtol=1e-12, atol=1e-12)
    assert adapter.buffer.dtype == dtype


@given(
    size=st.integers(1, 200),
    value=st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    dtype=DTYPES,
    data=st.data(),
)
def test_one_bad_value_anywhere_is_found(
    size: int, value: float, dtype: torch.dtype, data: st.DataObject
) -> None:
    """The check is one pass over the extremes, in which NaN must not get lost."""
    tensor = draw(size).to(dtype)

    assert is_finite(tensor)
    tensor[data.draw(st.integers(0, size - 1))] = value
    assert not is_finite(tensor)

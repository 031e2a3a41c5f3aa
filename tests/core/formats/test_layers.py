"""Forms of factors on convolutions and embeddings, where trainers store them in several shapes."""

import math
from pathlib import Path

import lycoris
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lycoris.functional import lokr as functional
from torch import Tensor, nn

from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from lokr_core.weights import DenseWeights, HadamardWeights, LokrWeights, TuckerFactor
from tests.core.formats.conv_base import IN, OUT, Base, conv_base, delta_of
from tests.core.formats.hand_made import draw, write, write_peft


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("is_flat", [True, False])
def test_low_rank_w2_may_keep_the_kernel_or_hold_it_in_its_columns(
    tmp_path: Path, kernel: tuple[int, ...], is_flat: bool
) -> None:
    """LyCORIS's modules write one, its functional interface the other."""
    w1, w2_a, w2_b = draw(2, 3, seed=1), draw(4, 2, seed=2), draw(2, 4, *kernel, seed=3)
    wanted = functional.diff_weight(w1, None, None, None, w2_a, w2_b.flatten(1), None, gamma=3.0)
    tensors = {
        "alpha": torch.tensor(3.0),
        "lokr_w1": w1,
        "lokr_w2_a": w2_a,
        "lokr_w2_b": w2_b.flatten(1) if is_flat else w2_b,
    }

    delta = delta_of(tmp_path, conv_base(*kernel), tensors)

    torch.testing.assert_close(delta, wanted.reshape(OUT, IN, *kernel).double())


def test_tucker_core_tells_that_w2_a_lies_transposed(tmp_path: Path) -> None:
    """Nothing else tells, where O2 is the rank."""
    parts = {
        "lokr_w1": draw(2, 3, seed=1),
        "lokr_t2": draw(4, 4, 3, 3, seed=2),
        "lokr_w2_a": draw(4, 4, seed=3),
        "lokr_w2_b": draw(4, 4, seed=4),
        "alpha": torch.tensor(2.0),
    }
    w2 = torch.einsum("ijkl,ip,jr->prkl", parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    wanted = torch.kron(parts["lokr_w1"][:, :, None, None], w2.contiguous())

    delta = delta_of(tmp_path, conv_base(3, 3), parts)

    torch.testing.assert_close(delta, 0.5 * wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 6])
def test_loha_of_four_dimensions_is_that_of_two(tmp_path: Path, rank: int) -> None:
    """OneTrainer stores the factors of convolutions as those of convolutions."""
    flat = {
        "hada_w1_a": draw(OUT, rank, seed=1),
        "hada_w1_b": draw(rank, IN * 9, seed=2),
        "hada_w2_a": draw(OUT, rank, seed=3),
        "hada_w2_b": draw(rank, IN * 9, seed=4),
        "alpha": torch.tensor(2.0),
    }
    deep = dict(flat)
    for leaf in ("hada_w1_a", "hada_w2_a"):
        deep[leaf] = flat[leaf][:, :, None, None]
    for leaf in ("hada_w1_b", "hada_w2_b"):
        deep[leaf] = flat[leaf].view(rank, IN, 3, 3)
    (tmp_path / "flat").mkdir()

    delta = delta_of(tmp_path, conv_base(3, 3), deep)

    assert torch.equal(delta, delta_of(tmp_path / "flat", conv_base(3, 3), flat))


@pytest.mark.parametrize(("rank", "kind"), [(2, LokrWeights), (3, HadamardWeights)])
def test_loha_with_cores_becomes_one_core_unless_that_is_larger(
    tmp_path: Path, rank: int, kind: type
) -> None:
    """Of two exact forms the smaller is kept: a core of rank² has rank⁴ K numbers."""
    base = conv_base(2, 2)
    module = lycoris.LohaModule(
        "lycoris_conv", base.conv, lora_dim=rank, alpha=1, use_tucker=True
    ).double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed))
    tensors = {f"lycoris_conv.{leaf}": t.contiguous() for leaf, t in module.state_dict().items()}
    x = draw(2, IN, 4, 4, seed=9).double()

    adapter = read_adapter(write(tmp_path, tensors), discover(base))

    assert isinstance(adapter.module("conv").terms[0].delta, kind)
    delta = adapter.delta_weights()["conv.weight"]
    answer = module(x) - base.conv(x)
    torch.testing.assert_close(nn.functional.conv2d(x, delta), answer.detach())


@given(data=st.data())
def test_tucker_loha_is_the_product_of_its_halves(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whichever form it is kept in."""
    sizes = st.integers(1, 3)
    num_out, num_in = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    tensors: dict[str, Tensor] = {}
    halves = []
    for half in (1, 2):
        first, second = data.draw(sizes), data.draw(sizes)
        core = draw(first, second, 3, seed=10 * half).double()
        a, b = (
            draw(first, num_out, seed=half).double(),
            draw(second, num_in, seed=5 * half).double(),
        )
        halves.append(torch.einsum("ijk,ip,jr->prk", core, a, b))
        tensors |= {f"hada_t{half}": core, f"hada_w{half}_a": a, f"hada_w{half}_b": b}
    base = Base(nn.Conv1d(num_in, num_out, 3, dtype=torch.float64))
    alpha = torch.tensor(float(len(tensors["hada_w1_b"])))

    delta = delta_of(tmp_path_factory.mktemp("a"), base, {**tensors, "alpha": alpha})

    torch.testing.assert_close(delta, halves[0] * halves[1])


def test_locon_with_a_core_has_the_output_rank_first(tmp_path: Path) -> None:
    """The core's first index belongs to up, though down comes first in every name."""
    up, mid, down = draw(OUT, 2, 1, 1, seed=1), draw(2, 3, 3, 3, seed=2), draw(3, IN, 1, 1, seed=3)
    tensors = {
        "lora_up.weight": up,
        "lora_mid.weight": mid,
        "lora_down.weight": down,
        "alpha": torch.tensor(3.0),
    }
    wanted = torch.einsum(
        "oi,ijkl,jc->ockl", *(t.double() for t in (up.flatten(1), mid, down.flatten(1)))
    )
    base = conv_base(3, 3)
    path = write(tmp_path, {f"lycoris_conv.{leaf}": t for leaf, t in tensors.items()})

    adapter = read_adapter(path, discover(base))

    torch.testing.assert_close(adapter.delta_weights()["conv.weight"], wanted)
    delta = adapter.module("conv").terms[0].delta
    assert isinstance(delta, LokrWeights)
    assert isinstance(delta.w2, TuckerFactor)


@pytest.mark.parametrize("is_deep", [True, False])
def test_lora_of_a_1x1_convolution_fits_a_linear_module_and_back(
    tmp_path: Path, is_deep: bool
) -> None:
    """Projections of some models are one in one version and the other in the next."""
    ones = (1, 1) if is_deep else ()
    down, up = draw(2, IN, *ones, seed=1), draw(OUT, 2, *ones, seed=2)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}
    base = Base(nn.Linear(IN, OUT, dtype=torch.float64)) if is_deep else conv_base(1, 1)

    delta = delta_of(tmp_path, base, tensors)

    torch.testing.assert_close(delta.flatten(1), (up.flatten(1) @ down.flatten(1)).double())


def peft_conv1d(folder: Path, w2: Tensor) -> DenseWeights | LokrWeights | HadamardWeights:
    """Return how a LoKr of PEFT over a Conv1d is kept."""
    base = conv_base(w2.shape[-1] if w2.ndim == 3 else 3)
    tensors = {"conv.lokr_w1": draw(2, 3, seed=1), "conv.lokr_w2": w2}
    adapter = read_adapter(write_peft(folder, tensors, r=8, alpha=8), discover(base))
    return adapter.module("conv").terms[0].delta


def test_peft_reshapes_a_conv1d_of_a_whole_w2_to_another_matrix(tmp_path: Path) -> None:
    """It must be reproduced as trained; that has no factors. The parity suite has the numbers."""
    w2 = draw(4, 4, 3, seed=2)
    blocks = torch.kron(draw(2, 3, seed=1), w2).reshape(OUT, IN * 3)

    delta = peft_conv1d(tmp_path, w2)

    assert isinstance(delta, DenseWeights)
    torch.testing.assert_close(delta.matrix, blocks.double())


def test_flat_w2_of_a_conv1d_is_the_usual_product(tmp_path: Path) -> None:
    """Only a w2 with a dimension for the kernel goes through that reshape."""
    assert isinstance(peft_conv1d(tmp_path, draw(4, 12, seed=2)), LokrWeights)


def test_core_of_peft_for_a_conv1d_has_one_dimension_more(tmp_path: Path) -> None:
    """PEFT writes (r, r, k, 1), LyCORIS (r, r, k); they mean the same."""
    core = draw(2, 2, 3, seed=2)
    sides = {"lokr_w2_a": draw(2, 4, seed=3), "lokr_w2_b": draw(2, 4, seed=4)}
    plain = {"lokr_w1": draw(2, 3, seed=1), **sides, "alpha": torch.tensor(2.0)}
    (tmp_path / "deep").mkdir()

    delta = delta_of(tmp_path, conv_base(3), {**plain, "lokr_t2": core})

    deep = delta_of(tmp_path / "deep", conv_base(3), {**plain, "lokr_t2": core[..., None]})
    assert torch.equal(delta, deep)


def test_biases_of_loras_are_scaled_and_keep_their_precision_where_that_is_exact(
    tmp_path: Path,
) -> None:
    """A file in half precision is not widened for the sake of a bias times two."""
    base = conv_base(1, 1)
    bias = draw(OUT, seed=3).bfloat16()
    tensors = {
        "conv.lora_A.weight": draw(2, IN, 1, 1, seed=1).bfloat16(),
        "conv.lora_B.weight": draw(OUT, 2, 1, 1, seed=2).bfloat16(),
        "conv.lora_B.bias": bias,
    }
    for alpha, dtype in ((4, torch.bfloat16), (3, torch.float64)):
        folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=alpha)

        adapter = read_adapter(folder, discover(base))

        assert adapter.buffer.dtype == dtype
        delta = adapter.delta_weights()["conv.bias"]
        torch.testing.assert_close(delta, alpha / 2 * bias.double())


def test_rank_of_a_module_is_found_behind_a_core(tmp_path: Path) -> None:
    """The columns of a transposed w2_a are no rank."""
    tensors = {
        "lokr_w1": draw(2, 3, seed=1),
        "lokr_t2": draw(3, 5, 3, 2, seed=2),
        "lokr_w2_a": draw(3, 4, seed=3),
        "lokr_w2_b": draw(5, 4, seed=4),
        "alpha": torch.tensor(1.0),
    }
    path = write(tmp_path, {f"lycoris_conv.{leaf}": t for leaf, t in tensors.items()})

    adapter = read_adapter(path, discover(conv_base(3, 2)))

    assert math.isclose(float(adapter.scales[0]), 1 / 5)

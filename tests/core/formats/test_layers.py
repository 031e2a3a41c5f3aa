"""Forms of factors on convolutions and embeddings, where trainers store them in several shapes."""

import math
from collections.abc import Callable
from pathlib import Path

import lycoris
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lycoris.functional import lokr as functional
from torch import Tensor, nn

from lokr_core.errors import AdapterMismatchError, AdapterTensorError, UnsupportedModuleError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from lokr_core.weights import DenseWeights, HadamardWeights, LokrWeights, TuckerFactor
from tests.core.formats.hand_made import draw, write, write_peft

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OUT, IN = 8, 12


class Base(nn.Module):
    """A base of the layer that files change, and another."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.side = nn.Linear(1, 1, dtype=torch.float64)  # a model of an embedding alone is none

    @property
    def weight(self) -> Tensor:
        """The layer's weight."""
        return self.get_parameter("conv.weight").detach()


def conv_base(*kernel: int, **options: object) -> Base:
    """Return a base of one convolution, float64."""
    kind: Callable[..., nn.Module] = CONVS[len(kernel)]
    return Base(kind(IN, OUT, kernel, bias=False, dtype=torch.float64, **options))


def delta_of(folder: Path, base: Base, tensors: dict[str, Tensor]) -> Tensor:
    """Return what a LyCORIS file adds to the convolution."""
    named = {f"lycoris_conv.{leaf}": tensor for leaf, tensor in tensors.items()}
    return read_adapter(write(folder, named), discover(base)).delta_weights()["conv.weight"]


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


def lokr_of(w2: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """Return a LoKr whose w1 is [2, 3]."""
    return {"lokr_w1": draw(2, 3), "lokr_w2": w2, **others}


MISFITS: dict[str, tuple[dict[str, Tensor], str]] = {
    "another kernel": (lokr_of(draw(4, 4, 2, 3)), r"kernel is \(3, 2\)"),
    "kernel in w1": ({"lokr_w1": draw(2, 3, 3, 2), "lokr_w2": draw(4, 4)}, "no kernel belongs"),
    "kernel in both": (
        {"lokr_w1": draw(2, 9), "lokr_w2": draw(4, 8)},
        r"lokr_w2' is \(4, 8\), which does not hold the kernel \(3, 2\)",
    ),
    "kernel in both, low rank": (
        {"lokr_w1": draw(2, 9), "lokr_w2_a": draw(4, 2), "lokr_w2_b": draw(2, 8)},
        r"lokr_w2_b' is \(2, 8\), which does not hold the kernel \(3, 2\)",
    ),
    "core of another kernel": (
        {
            "lokr_w1": draw(2, 3),
            "lokr_t2": draw(2, 2, 2, 2),
            "lokr_w2_a": draw(2, 4),
            "lokr_w2_b": draw(2, 4),
        },
        r"kernel is \(3, 2\)",
    ),
    "core of another rank": (
        {
            "lokr_w1": draw(2, 3),
            "lokr_t2": draw(2, 2, 3, 2),
            "lokr_w2_a": draw(3, 4),
            "lokr_w2_b": draw(2, 4),
        },
        r"lokr_w2_a' is \(3, 4\), but its core has rank 2",
    ),
    "core without sides": ({"lokr_w1": draw(2, 3), "lokr_t2": draw(2, 2, 3, 2)}, "no partner"),
    "core in one half": (
        {
            "hada_t1": draw(2, 2, 3, 2),
            **{f"hada_w{half}_a": draw(2, OUT) for half in (1, 2)},
            **{f"hada_w{half}_b": draw(2, IN) for half in (1, 2)},
        },
        "has no partner 'hada_t2'",
    ),
}


@pytest.mark.parametrize(("tensors", "problem"), MISFITS.values(), ids=MISFITS)
def test_factors_that_do_not_fit_the_kernel_are_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], problem: str
) -> None:
    """Sizes that multiply out by chance would give a scrambled kernel."""
    with pytest.raises(AdapterTensorError, match=problem):
        delta_of(tmp_path, conv_base(3, 2), tensors)


def test_factors_of_another_base_are_refused_before_they_are_multiplied(tmp_path: Path) -> None:
    """A small file must not make the reader take memory for a large product."""
    rank = 64  # its Khatri-Rao products have 64 times the file's numbers
    size = 6000
    tensors = {
        "hada_w1_a": torch.ones(size, rank),
        "hada_w1_b": torch.ones(rank, size),
        "hada_w2_a": torch.ones(size, rank),
        "hada_w2_b": torch.ones(rank, size),
    }

    with pytest.raises(AdapterMismatchError):
        delta_of(tmp_path, conv_base(1, 1), tensors)


def peft_lora(folder: Path, base: Base, num_in: int) -> None:
    """Read a LoRA of PEFT over a convolution."""
    kernel = base.weight.shape[2:]
    tensors = {
        "conv.lora_A.weight": draw(2, num_in, *kernel),
        "conv.lora_B.weight": draw(OUT, 2, *[1] * len(kernel)),
    }
    read_adapter(write_peft(folder, tensors, peft_type="LORA", r=2), discover(base))


def test_lora_of_peft_on_grouped_or_dilated_convolutions_is_refused(tmp_path: Path) -> None:
    """What it trains there is no change of the weight; LyCORIS's is, and is served."""
    with pytest.raises(UnsupportedModuleError, match="reads every channel"):
        peft_lora(tmp_path, conv_base(3, 3, groups=2), IN)
    with pytest.raises(UnsupportedModuleError, match="without the convolution's dilation"):
        peft_lora(tmp_path, conv_base(3, 3, dilation=2), IN)
    peft_lora(tmp_path, conv_base(1, 1, dilation=2), IN)


def test_dora_by_input_of_a_convolution_is_by_channel(tmp_path: Path) -> None:
    """One magnitude for all of a channel's kernel."""
    base = conv_base(3, 2)
    magnitude = draw(1, IN, 1, 1, seed=5).abs().double()
    factors = lokr_of(draw(4, 4, 3, 2, seed=2))
    adapted = base.weight + torch.kron(factors["lokr_w1"][:, :, None, None], factors["lokr_w2"])
    norm = adapted.square().sum(dim=(0, 2, 3), keepdim=True).sqrt()

    delta = delta_of(tmp_path, base, {**factors, "dora_scale": magnitude})

    wanted = adapted * magnitude / norm - base.weight
    torch.testing.assert_close(delta, wanted)


@pytest.mark.parametrize("shape", [(OUT, 1, 3, 2), (OUT, IN, 1, 1), (2, OUT), (1, OUT, 1, 1)])
def test_magnitude_along_no_axis_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The last is PEFT's own shape, whose key has another name."""
    tensors = {**lokr_of(draw(4, 4, 3, 2)), "dora_scale": torch.ones(shape)}

    with pytest.raises(AdapterTensorError, match="which is no magnitude"):
        delta_of(tmp_path, conv_base(3, 2), tensors)


def test_magnitude_of_peft_is_by_output_whatever_its_shape(tmp_path: Path) -> None:
    """LyCORIS means inputs by the same shape; the key tells them apart."""
    base = Base(nn.Conv2d(4, 4, 1, dtype=torch.float64))
    magnitude = draw(1, 4, 1, 1, seed=5).abs().double()
    tensors = {
        "conv.lora_A.weight": draw(2, 4, 1, 1, seed=1),
        "conv.lora_B.weight": draw(4, 2, 1, 1, seed=2),
        "conv.lora_magnitude_vector": magnitude,
    }
    folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2, use_dora=True)
    product = tensors["conv.lora_B.weight"].flatten(1) @ tensors["conv.lora_A.weight"].flatten(1)
    adapted = base.weight.flatten(1) + product
    wanted = adapted * (magnitude.flatten() / adapted.norm(dim=1))[:, None]

    delta = read_adapter(folder, discover(base)).delta_weights()["conv.weight"]

    torch.testing.assert_close(delta.flatten(1), wanted - base.weight.flatten(1))


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


def test_magnitude_of_an_embedding_is_by_column(tmp_path: Path) -> None:
    """PEFT takes the table transposed there, so that its outputs are our columns."""
    base = Base(nn.Embedding(OUT, IN, dtype=torch.float64))
    magnitude = draw(IN, seed=5).abs().double()
    a, b = draw(2, OUT, seed=1).double(), draw(IN, 2, seed=2).double()
    tensors = {
        "conv.lora_embedding_A": a,
        "conv.lora_embedding_B": b,
        "conv.lora_magnitude_vector": magnitude,
    }
    folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=2, use_dora=True)
    adapted = base.weight + (b @ a).mT

    delta = read_adapter(folder, discover(base)).delta_weights()["conv.weight"]

    torch.testing.assert_close(delta, adapted * magnitude / adapted.norm(dim=0) - base.weight)

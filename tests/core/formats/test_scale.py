"""The scale of a module: alpha and rank from wherever they are, and from nowhere else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.adapter import Adapter, ScaleSource
from lokr_core.errors import AdapterConfigError, AdapterError, AdapterTensorError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import (
    FLAT_Q,
    FLAT_V,
    PEFT_Q,
    Q,
    base_spec,
    draw,
    full,
    lora,
    low_rank,
    unscaled,
    write,
    write_peft,
)


def scale_of(adapter: Adapter) -> float:
    """Return the scale of the adapter's first module."""
    return float(adapter.scales[0])


def sources(adapter: Adapter) -> list[str]:
    """Return where the adapter's scales come from."""
    return [scale.source for scale in adapter.info.scales]


def test_low_rank_factor_has_scale_alpha_over_rank(tmp_path: Path) -> None:
    """It is what every program of the LyCORIS family applies."""
    tensors = low_rank(FLAT_Q)

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    assert adapter.info.scales == (ScaleSource(source="alpha/rank of the file", num_modules=1),)
    delta = adapter.delta_weights()[f"{Q}.weight"]
    torch.testing.assert_close(delta, 2.0 * unscaled(tensors, FLAT_Q))


def test_rank_is_that_of_w2_when_both_factors_are_low_rank(tmp_path: Path) -> None:
    """LyCORIS divides by one dimension; w2 is the factor that always shows it."""
    w1 = {f"{FLAT_Q}.lokr_w1_a": torch.ones(2, 5), f"{FLAT_Q}.lokr_w1_b": torch.ones(5, 3)}
    tensors = low_rank(FLAT_Q) | w1
    del tensors[f"{FLAT_Q}.lokr_w1"]

    assert scale_of(read_adapter(write(tmp_path, tensors), base_spec())) == 2.0


def test_rank_is_that_of_w1_when_w2_is_full(tmp_path: Path) -> None:
    """A module with one low-rank factor is scaled, whichever factor that is."""
    tensors = full(FLAT_Q)
    del tensors[f"{FLAT_Q}.lokr_w1"]
    tensors |= {f"{FLAT_Q}.lokr_w1_a": torch.ones(2, 2), f"{FLAT_Q}.lokr_w1_b": torch.ones(2, 3)}

    assert scale_of(read_adapter(write(tmp_path, tensors), base_spec())) == 3.0


def test_two_full_factors_have_scale_one(tmp_path: Path) -> None:
    """LyCORIS fills in alpha there, so that it means nothing."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q)), base_spec())

    assert scale_of(adapter) == 1.0
    assert sources(adapter) == ["1: both factors are full"]
    assert adapter.warnings == ()


def test_module_without_alpha_has_scale_one_and_a_warning(tmp_path: Path) -> None:
    """There is nothing to divide; the reader says so, since such a file is unusual."""
    adapter = read_adapter(write(tmp_path, low_rank(FLAT_Q, alpha=None)), base_spec())

    assert scale_of(adapter) == 1.0
    assert adapter.warnings == ("1 modules have no alpha and are left at scale 1",)


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(6),
        torch.tensor([6.0]),
        torch.tensor(6.0, dtype=torch.float16),
        torch.tensor(6.0, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_alpha_may_be_of_any_dtype_and_hold_one_dimension(tmp_path: Path, alpha: Tensor) -> None:
    """Trainers write alpha as integers, halves, and lists of one."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.alpha": alpha}

    assert scale_of(read_adapter(write(tmp_path, tensors), base_spec())) == 2.0


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.tensor(True)], ids=str)
def test_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Tensor) -> None:
    """A list of several alphas has no meaning that could be guessed."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.alpha": alpha}

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.alpha' is .*not one number"):
        read_adapter(write(tmp_path, tensors), base_spec())


@pytest.mark.parametrize("alpha", [float("inf"), float("nan")])
def test_alpha_that_is_not_finite_is_refused_beside_a_low_rank_factor(
    tmp_path: Path, alpha: float
) -> None:
    """There the scale would be infinite, and every output with it."""
    path = write(tmp_path, low_rank(FLAT_Q, alpha=alpha))

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.alpha' .*scale_override"):
        read_adapter(path, base_spec())
    assert scale_of(read_adapter(path, base_spec(), alpha=3)) == 1.0


def test_alpha_zero_is_applied_with_a_warning(tmp_path: Path) -> None:
    """The file says that its delta is off; the reader says so too."""
    adapter = read_adapter(write(tmp_path, low_rank(FLAT_Q, alpha=0.0)), base_spec())

    assert scale_of(adapter) == 0.0
    assert "alpha 0" in adapter.warnings[0]


def test_scale_override_replaces_every_scale(tmp_path: Path) -> None:
    """Some files have a wrong alpha, and nothing in them says so."""
    tensors = low_rank(FLAT_Q) | full(FLAT_V)

    adapter = read_adapter(write(tmp_path, tensors), base_spec(), scale_override=0.25)

    assert adapter.scales.tolist() == [0.25, 0.25]
    assert adapter.info.scales == (ScaleSource(source="scale_override", num_modules=2),)


@pytest.mark.parametrize("leaves", [("w_norm", "b_norm"), ("diff", "diff_b"), ("b_norm",)], ids=str)
def test_scale_override_that_applies_to_no_norm_is_reported(
    tmp_path: Path, leaves: tuple[str, ...]
) -> None:
    """An override must never be dropped without a word."""
    spec = discover(nn.ModuleDict({"norm": nn.LayerNorm(4), "linear": nn.Linear(4, 4)}))
    path = write(tmp_path, {f"lycoris_norm.{leaf}": draw(4) for leaf in leaves})

    adapter = read_adapter(path, spec, scale_override=0.5)

    assert "no scale, alpha or rank applies" in adapter.warnings[0]
    assert read_adapter(path, spec).warnings == ()


def test_alpha_and_rank_replace_what_the_file_says(tmp_path: Path) -> None:
    """Each may be given alone; the source then says whose number it was."""
    path = write(tmp_path, low_rank(FLAT_Q))

    by_alpha = read_adapter(path, base_spec(), alpha=12)
    by_rank = read_adapter(path, base_spec(), rank=12)
    by_both = read_adapter(path, base_spec(), alpha=5, rank=10)

    assert [scale_of(a) for a in (by_alpha, by_rank, by_both)] == [4.0, 0.5, 0.5]
    assert sources(by_alpha) == ["alpha/rank of the file, alpha given by the caller"]
    assert sources(by_both) == ["alpha/rank of the file, alpha and rank given by the caller"]


def test_rank_given_makes_the_alpha_of_two_full_factors_count(tmp_path: Path) -> None:
    """The caller then knows what the file does not tell: the dimension that it was trained at."""
    assert scale_of(read_adapter(write(tmp_path, full(FLAT_Q)), base_spec(), rank=12)) == 0.5


def test_alpha_given_for_two_full_factors_is_reported_as_unused(tmp_path: Path) -> None:
    """An override must never be dropped without a word."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q)), base_spec(), alpha=3)

    assert scale_of(adapter) == 1.0
    assert "alpha is not used" in adapter.warnings[0]


def test_rank_given_for_a_file_without_alpha_is_refused(tmp_path: Path) -> None:
    """A rank alone makes no scale."""
    path = write(tmp_path, low_rank(FLAT_Q, alpha=None))

    with pytest.raises(AdapterConfigError, match=r"rank: .*give alpha too"):
        read_adapter(path, base_spec(), rank=3)


@pytest.mark.parametrize("alpha", [1e300, -1e300])
def test_scale_that_overflows_where_it_is_computed_with_is_refused(
    tmp_path: Path, alpha: float
) -> None:
    """It is finite in the file, but every output would be infinite or NaN."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.alpha": torch.tensor(alpha, dtype=torch.float64)}
    path = write(tmp_path, tensors)

    with pytest.raises(AdapterError, match=rf"^module '{Q}': its scale .*e\+299 overflows"):
        read_adapter(path, base_spec())
    assert scale_of(read_adapter(path, base_spec(torch.float64))) == alpha / 3


@pytest.mark.parametrize("module", [PEFT_Q, Q])
def test_peft_tensors_without_their_config_need_alpha_and_rank(tmp_path: Path, module: str) -> None:
    """PEFT keeps the scale out of the tensor file, so nothing there can tell it."""
    path = write(tmp_path, full(module, alpha=None))

    with pytest.raises(AdapterConfigError, match="give alpha and rank, or scale_override"):
        read_adapter(path, base_spec())
    with pytest.raises(AdapterConfigError, match="give alpha and rank, or scale_override"):
        read_adapter(path, base_spec(), alpha=8)
    assert scale_of(read_adapter(path, base_spec(), alpha=8, rank=16)) == 0.5
    assert scale_of(read_adapter(path, base_spec(), scale_override=1.5)) == 1.5


def test_peft_tensors_without_their_config_show_their_rank(tmp_path: Path) -> None:
    """Alpha is enough when a low-rank factor gives the rank."""
    adapter = read_adapter(write(tmp_path, lora(PEFT_Q)), base_spec(), alpha=6)

    assert scale_of(adapter) == 2.0
    assert adapter.info.format == "peft"


def test_config_gives_alpha_over_r_even_for_two_full_factors(tmp_path: Path) -> None:
    """PEFT divides always; the tensors show no rank, the configuration does."""
    adapter = read_adapter(write_peft(tmp_path, full(PEFT_Q, alpha=None)), base_spec())

    assert scale_of(adapter) == 2.0
    assert sources(adapter) == ["alpha/r of adapter_config.json"]


def test_config_yields_to_what_the_caller_gives(tmp_path: Path) -> None:
    """An override replaces the configuration as it replaces a file's alpha."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q, alpha=None))

    assert scale_of(read_adapter(folder, base_spec(), alpha=1.5)) == 0.5
    assert scale_of(read_adapter(folder, base_spec(), rank=12)) == 0.5
    assert scale_of(read_adapter(folder, base_spec(), scale_override=7)) == 7


def test_config_whose_rank_is_not_that_of_the_tensors_is_refused(tmp_path: Path) -> None:
    """One of them belongs to another adapter, and which one nobody can tell."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q, alpha=None), r=4)

    with pytest.raises(AdapterConfigError, match=rf"^r: is 4 for module '{Q}'.* rank 3"):
        read_adapter(folder, base_spec())


def test_pattern_matches_whole_segments_at_the_end_of_a_path(tmp_path: Path) -> None:
    """PEFT's own rule: the first pattern that matches counts, and `proj` is no match for q_proj."""
    folder = write_peft(
        tmp_path,
        full(PEFT_Q, alpha=None),
        alpha_pattern={"proj": 30, "q_proj": 9, r"block\..*": 12},
        rank_pattern={"k_proj": 30, "q_.*": 18},
    )

    assert scale_of(read_adapter(folder, base_spec())) == 0.5

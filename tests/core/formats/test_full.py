"""Deltas without factors: whole differences, norms, biases and sparse residuals."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.errors import AdapterTensorError, UnsupportedModuleError
from lokr_core.formats import read_adapter
from lokr_core.formats.binding import bind
from lokr_core.formats.full import read_residual
from lokr_core.formats.names import ModuleNames
from lokr_core.formats.tensors import WeightShape
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.core.formats.hand_made import FLAT_Q, Q, base_spec, draw, full, low_rank, write


def layered_spec() -> ModelSpec:
    """Return a base with a layer of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = nn.ModuleDict(
            {
                "linear": nn.Linear(6, 4),
                "conv": nn.Conv2d(6, 4, (3, 2)),
                "norm": nn.LayerNorm(4),
                "embed": nn.Embedding(8, 6),
            }
        )
    return discover(base)


def test_whole_differences_are_added_as_they_are(tmp_path: Path) -> None:
    """An extracted file may hold every parameter so, norms under one name or the other."""
    tensors = {
        "lycoris_linear.diff": draw(4, 6, seed=1),
        "lycoris_linear.diff_b": draw(4, seed=2),
        "lycoris_conv.diff": draw(4, 6, 3, 2, seed=3),
        "lycoris_embed.diff": draw(8, 6, seed=4),
        "lycoris_norm.w_norm": draw(4, seed=5),
        "lycoris_norm.b_norm": draw(4, seed=6),
    }
    names = {
        "linear.weight": "linear.diff",
        "linear.bias": "linear.diff_b",
        "conv.weight": "conv.diff",
        "embed.weight": "embed.diff",
        "norm.weight": "norm.w_norm",
        "norm.bias": "norm.b_norm",
    }

    adapter = read_adapter(write(tmp_path, tensors), layered_spec())

    deltas = adapter.delta_weights()
    assert set(deltas) == set(names)
    for name, key in names.items():
        torch.testing.assert_close(deltas[name], tensors[f"lycoris_{key}"])
    assert adapter.info.algorithms == ("full", "norm")
    assert adapter.info.scales[0].source == "1: a whole difference has no scale"
    assert adapter.warnings == ()


def test_norm_may_have_its_difference_under_the_name_of_a_weight(tmp_path: Path) -> None:
    """Other extractors write diff for every weight there is."""
    tensors = {"lycoris_norm.diff": draw(4, seed=5)}

    adapter = read_adapter(write(tmp_path, tensors), layered_spec())

    torch.testing.assert_close(adapter.delta_weights()["norm.weight"], draw(4, seed=5))
    assert adapter.info.algorithms == ("norm",)


@pytest.mark.parametrize("given", [{"scale_override": 2.0}, {"alpha": 3.0}, {"rank": 2}], ids=str)
def test_scale_given_for_a_whole_difference_is_reported_as_unused(
    tmp_path: Path, given: dict[str, float]
) -> None:
    """An override must never be dropped without a word."""
    path = write(tmp_path, {"lycoris_linear.diff": draw(4, 6)})

    adapter = read_adapter(path, layered_spec(), **given)  # type: ignore[arg-type]

    assert adapter.scales.tolist() == [1.0]
    assert adapter.warnings == (
        "1 modules are whole differences, to which no scale, alpha or rank applies",
    )


def test_dora_of_a_whole_difference_is_applied(tmp_path: Path) -> None:
    """A magnitude belongs to the sum, however that came about."""
    spec = layered_spec()
    weight = spec.modules["linear"].weight
    diff, magnitude = draw(4, 6, seed=1), draw(4, 1, seed=2).abs()
    tensors = {"lycoris_linear.diff": diff, "lycoris_linear.dora_scale": magnitude}

    adapter = read_adapter(write(tmp_path, tensors), spec)

    adapted = weight + diff
    wanted = adapted * magnitude / adapted.norm(dim=1, keepdim=True) - weight
    torch.testing.assert_close(adapter.delta_weights()["linear.weight"], wanted)


def test_scale_of_the_file_wins_over_its_alpha(tmp_path: Path) -> None:
    """SD.Next writes one; a caller's word still wins over both."""
    path = write(tmp_path, {f"{FLAT_Q}.scale": torch.tensor(0.25), **low_rank(FLAT_Q)})

    adapter = read_adapter(path, base_spec())

    assert adapter.scales.tolist() == [0.25]
    assert adapter.info.scales[0].source == "scale of the file"
    assert read_adapter(path, base_spec(), alpha=3).scales.tolist() == [1.0]
    assert read_adapter(path, base_spec(), scale_override=7).scales.tolist() == [7.0]


def test_scale_of_the_file_must_be_finite(tmp_path: Path) -> None:
    """It would come out as an adapter of NaN."""
    tensors = {f"{FLAT_Q}.scale": torch.tensor(torch.inf), **full(FLAT_Q)}

    with pytest.raises(AdapterTensorError, match=r"scale' is inf, which is no scale"):
        read_adapter(write(tmp_path, tensors), base_spec())


def extracted(**others: Tensor) -> dict[str, Tensor]:
    """Return an extracted LoRA with the residual that it leaves over."""
    parts = {
        "lora_down.weight": draw(2, 12, seed=1).half(),
        "lora_up.weight": draw(8, 2, seed=2).half(),
        "alpha": torch.tensor([2.0]).half(),
        "bias_indices": torch.tensor([[0, 3, 7], [11, 0, 5]], dtype=torch.int16),
        "bias_values": torch.tensor([0.5, -2, 4]).half(),
        "bias_size": torch.tensor([8, 12], dtype=torch.int16),
        **others,
    }
    return {f"{FLAT_Q}.{leaf}": tensor for leaf, tensor in parts.items()}


def test_residual_of_an_extracted_lora_is_added_to_the_weight(tmp_path: Path) -> None:
    """Its tensors are named after the bias, which it has nothing to do with."""
    tensors = extracted()
    dense = torch.zeros(8, 12)
    dense[[0, 3, 7], [11, 0, 5]] = torch.tensor([0.5, -2, 4])
    up, down = (tensors[f"{FLAT_Q}.lora_{side}.weight"].float() for side in ("up", "down"))

    adapter = read_adapter(write(tmp_path, tensors), base_spec())

    assert set(adapter.delta_weights()) == {f"{Q}.weight"}
    torch.testing.assert_close(adapter.delta_weights()[f"{Q}.weight"], up @ down + dense)
    assert adapter.buffer.dtype == torch.float16
    assert adapter.info.num_parameters == 24 + 16 + 3


def test_residual_may_be_empty(tmp_path: Path) -> None:
    """Nothing may be left over."""
    indices, values = torch.zeros(2, 0, dtype=torch.int16), torch.zeros(0).half()
    tensors = extracted(bias_indices=indices, bias_values=values)
    up, down = (tensors[f"{FLAT_Q}.lora_{side}.weight"].float() for side in ("up", "down"))

    adapter = read_adapter(write(tmp_path, tensors), base_spec())

    torch.testing.assert_close(adapter.delta_weights()[f"{Q}.weight"], up @ down)


@pytest.mark.parametrize(
    ("base", "values", "kept"),
    [
        (torch.float32, torch.float64, torch.float32),
        (torch.float64, torch.float64, torch.float64),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float16),
    ],
)
def test_residual_takes_no_wider_numbers_than_are_computed_with(
    base: torch.dtype, values: torch.dtype, kept: torch.dtype
) -> None:
    """A few numbers of a small file make a matrix of the size of the weight."""
    spec = base_spec(base)
    tensors = extracted(bias_values=torch.tensor([0.1, -2, 4], dtype=values))
    (module,) = bind(tensors, ModuleNames(spec)).modules

    residual = read_residual(module, WeightShape.of(module), spec.compute_dtype)

    assert residual is not None
    assert residual.matrix.dtype == kept
    assert residual.matrix[0, 11] == torch.tensor(0.1, dtype=values).to(kept)


RESIDUALS = {
    "of another size": ({"bias_size": torch.tensor([8, 11])}, r"is not \[8, 12\]"),
    "of a size in fractions": ({"bias_size": torch.tensor([8.0, 12.0])}, "whole numbers"),
    "out of range": ({"bias_indices": torch.tensor([[0, 3, 8], [11, 0, 5]])}, "outside of"),
    "before the first": ({"bias_indices": torch.tensor([[0, 3, -1], [11, 0, 5]])}, "outside of"),
    "at one place twice": ({"bias_indices": torch.tensor([[0, 3, 3], [11, 0, 0]])}, "twice"),
    "of too few places": ({"bias_indices": torch.tensor([[0, 3], [11, 0]])}, "a row and a column"),
    "of NaN": ({"bias_values": torch.tensor([1, 2, torch.nan])}, "holds NaN"),
}


@pytest.mark.parametrize(("parts", "problem"), RESIDUALS.values(), ids=RESIDUALS)
def test_residual_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, parts: dict[str, Tensor], problem: str
) -> None:
    """Its size and its places come from the file, and are not to be trusted."""
    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.bias_.* {problem}"):
        read_adapter(write(tmp_path, extracted(**parts)), base_spec())


WRONG_LAYERS = {
    "a norm's difference on a linear module": ({"linear.w_norm": draw(4)}, "is for a norm"),
    "a LoKr on a norm": (
        {"norm.lokr_w1": draw(2, 1), "norm.lokr_w2": draw(2, 1)},
        "a norm has no lokr",
    ),
    "a bias on an embedding": ({"embed.diff_b": draw(8)}, "has none"),
}


@pytest.mark.parametrize(("tensors", "problem"), WRONG_LAYERS.values(), ids=WRONG_LAYERS)
def test_tensors_on_a_layer_that_has_no_place_for_them_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], problem: str
) -> None:
    """What it would mean there nobody knows."""
    named = {f"lycoris_{key}": tensor for key, tensor in tensors.items()}

    with pytest.raises(UnsupportedModuleError, match=problem):
        read_adapter(write(tmp_path, named), layered_spec())


def test_magnitude_of_a_norm_is_refused(tmp_path: Path) -> None:
    """There are no factors that it could belong to."""
    tensors = {"lycoris_norm.w_norm": draw(4), "lycoris_norm.dora_scale": draw(4, 1)}

    with pytest.raises(AdapterTensorError, match="dora_scale' stands alone"):
        read_adapter(write(tmp_path, tensors), layered_spec())

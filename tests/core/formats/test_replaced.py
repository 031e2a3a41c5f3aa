"""Parameters that take the place of the base's: when they do, when not, and when that is wrong."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lokr_core.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterTensorError,
    UnsupportedModuleError,
)
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from lokr_core.spec import ModelSpec
from tests.core.formats.hand_made import PEFT_Q, Q, V, base_spec, draw, lora, write_peft
from tests.tiny import tiny_gpt2

WRAPPER = "base_model.model."


def bias_of(spec: ModelSpec, path: str) -> Tensor:
    """Return a bias of the base."""
    bias = spec.modules[path].bias
    assert bias is not None
    return bias


def peft_lora(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a LoRA of r 3 at scale 2 with other tensors beside it."""
    named = {f"{WRAPPER}{key}": tensor for key, tensor in tensors.items()}
    return write_peft(folder, lora(PEFT_Q) | named, peft_type="LORA", lora_alpha=6)


def test_whole_parameters_replace_those_of_the_base(tmp_path: Path) -> None:
    """modules_to_save and trained biases are stored whole, under several names."""
    spec = base_spec()
    weight, bias, other = draw(8, 12, seed=3), draw(8, seed=4), draw(8, seed=5)
    tensors = {
        f"{V}.modules_to_save.default.weight": weight,
        f"{V}.bias": bias,
        f"{Q}.base_layer.bias": other,
    }

    adapter = read_adapter(peft_lora(tmp_path, tensors), spec)

    deltas = adapter.delta_weights()
    modules = spec.modules
    torch.testing.assert_close(deltas[f"{V}.weight"], weight - modules[V].weight)
    torch.testing.assert_close(deltas[f"{V}.bias"], bias - bias_of(spec, V))
    torch.testing.assert_close(deltas[f"{Q}.bias"], other - bias_of(spec, Q))
    assert adapter.info.algorithms == ("lora", "replacement")
    assert adapter.module(Q).terms


def test_what_equals_the_base_is_left_out_with_a_note(tmp_path: Path) -> None:
    """PEFT saves embeddings that nobody trained; as replacements they would forbid mixes."""
    spec = base_spec()
    weight = spec.modules[V].weight.clone()
    tensors = {
        f"{V}.weight": weight.double(),
        f"{V}.original_module.weight": weight,
        f"{Q}.base_layer.weight": spec.modules[Q].weight.clone(),
    }

    adapter = read_adapter(peft_lora(tmp_path, tensors), spec)

    assert list(adapter.modules()) == [Q]
    assert adapter.module(Q).replacement is None
    assert set(adapter.warnings) == {
        "2 modules hold parameters that equal the base's, which were left out",
        "1 modules hold the base's own parameters beside what replaces them; left out",
    }


def test_base_in_half_precision_equals_the_file_that_it_was_rounded_from(tmp_path: Path) -> None:
    """The same weights are the same, in whatever precision the server holds them."""
    spec = base_spec(torch.bfloat16)
    exact = base_spec().modules[V].weight
    spec.modules[V].weight.copy_(exact)
    tensors = {f"{V}.weight": exact.clone(), f"{V}.bias": bias_of(spec, V).float()}

    adapter = read_adapter(peft_lora(tmp_path, tensors), spec)

    assert list(adapter.modules()) == [Q]


def test_file_without_any_change_is_refused(tmp_path: Path) -> None:
    """An adapter that does nothing is a mistake."""
    spec = base_spec()
    tensors = {f"{WRAPPER}{V}.weight": spec.modules[V].weight.clone()}

    with pytest.raises(AdapterFileError, match="holds no change of the base model"):
        read_adapter(write_peft(tmp_path, tensors, peft_type="LORA", lora_alpha=6), spec)


@pytest.mark.parametrize("has_dora", [False, True])
def test_delta_of_a_replaced_base_layer_is_added_to_that(tmp_path: Path, has_dora: bool) -> None:
    """It was trained on another base weight, which the file holds: what counts is the sum."""
    spec = base_spec(torch.float64)
    weight, bias = draw(8, 12, seed=7).double(), draw(8, seed=8).double()
    factors = lora(PEFT_Q)
    magnitude = draw(8, seed=9).abs().double()
    others = {f"{PEFT_Q}.base_layer.weight": weight, f"{PEFT_Q}.base_layer.bias": bias}
    if has_dora:
        others[f"{PEFT_Q}.lora_magnitude_vector"] = magnitude
    others[f"{PEFT_Q}.lora_B.bias"] = draw(8, seed=10).double()
    folder = write_peft(
        tmp_path, factors | others, peft_type="LORA", lora_alpha=6, use_dora=has_dora
    )
    b, a = factors[f"{PEFT_Q}.lora_B.weight"], factors[f"{PEFT_Q}.lora_A.weight"]
    wanted = weight + 2 * b.double() @ a.double()
    if has_dora:
        wanted = wanted * (magnitude / wanted.norm(dim=1))[:, None]

    adapter = read_adapter(folder, spec)

    base = spec.modules[Q]
    deltas = adapter.delta_weights()
    torch.testing.assert_close(deltas[f"{Q}.weight"], wanted - base.weight)
    wanted_bias = bias + 2 * draw(8, seed=10).double()
    torch.testing.assert_close(deltas[f"{Q}.bias"], wanted_bias - bias_of(spec, Q))


def unbiased_spec() -> ModelSpec:
    """Return a base of an embedding, a head and a convolution without biases."""
    base = nn.ModuleDict(
        {
            "embed": nn.Embedding(8, 6),
            "head": nn.Linear(6, 8, bias=False),
            "conv": nn.Conv1d(6, 4, 3, bias=False),
            "norm": nn.LayerNorm(6, bias=False),
        }
    )
    return discover(base.double())


def test_resized_embedding_with_a_delta_of_its_own_is_replaced(tmp_path: Path) -> None:
    """New tokens were added before training: the file's table is larger than the base's."""
    table = draw(10, 6, seed=1)
    tensors = {
        f"{WRAPPER}embed.base_layer.weight": table,
        f"{WRAPPER}embed.lora_embedding_A": draw(2, 10, seed=2),
        f"{WRAPPER}embed.lora_embedding_B": draw(6, 2, seed=3),
    }
    folder = write_peft(tmp_path, tensors, peft_type="LORA", r=2, lora_alpha=4)

    adapter = read_adapter(folder, unbiased_spec())

    replaced = adapter.module("embed").replacement
    assert replaced is not None
    assert replaced.weight is not None
    delta = 2 * (tensors[f"{WRAPPER}embed.lora_embedding_B"] @ draw(2, 10, seed=2)).mT
    torch.testing.assert_close(replaced.weight, (table + delta).double())
    assert adapter.delta_weights() == {}
    assert "embed.weight of 8 outputs is replaced by one of 10" in adapter.warnings[0]


def test_replaced_parameters_keep_their_own_layout(tmp_path: Path) -> None:
    """Convolutions are stored with their kernel, Conv1D transposed, norms as vectors."""
    spec, gpt2 = unbiased_spec(), discover(tiny_gpt2(torch.float64))
    tensors = {
        "conv.weight": draw(5, 6, 3, seed=1),
        "head.weight": draw(3, 6, seed=2),
        "norm.weight": draw(6, seed=3),
    }
    path = "transformer.h.0.mlp.c_fc"
    stored = draw(*gpt2.modules[path].parameter.shape, seed=4)

    (tmp_path / "a").mkdir()
    named = {f"{WRAPPER}{key}": tensor for key, tensor in tensors.items()}
    adapter = read_adapter(write_peft(tmp_path / "a", named, peft_type="LORA"), spec)
    other = read_adapter(
        write_peft(tmp_path, {f"{WRAPPER}{path}.weight": stored}, peft_type="LORA"), gpt2
    )

    shapes = {}
    for name, module in adapter.modules().items():
        assert module.replacement is not None
        assert module.replacement.weight is not None
        shapes[name] = tuple(module.replacement.weight.shape)
    assert shapes == {"conv": (5, 18), "head": (3, 6), "norm": (6, 1)}
    assert set(adapter.delta_weights()) == {"norm.weight"}
    delta = other.delta_weights()[f"{path}.weight"]
    torch.testing.assert_close(delta, stored.double() - gpt2.modules[path].parameter)


MISFITS = {
    "head of other inputs": {"head.weight": draw(8, 5)},
    "head with a kernel": {"head.weight": draw(8, 6, 1)},
    "convolution of another kernel": {"conv.weight": draw(4, 6, 1)},
    "convolution without a kernel": {"conv.weight": draw(4, 18)},
    "norm of another size": {"norm.weight": draw(5)},
    "embedding of other columns": {"embed.weight": draw(8, 5)},
}


@pytest.mark.parametrize("tensors", MISFITS.values(), ids=MISFITS)
def test_replacement_of_other_inputs_is_refused_with_both_shapes(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """Only the number of outputs may differ: a head may have its own labels."""
    named = {f"{WRAPPER}{key}": tensor for key, tensor in tensors.items()}

    with pytest.raises(AdapterMismatchError) as raised:
        read_adapter(write_peft(tmp_path, named, peft_type="LORA"), unbiased_spec())
    assert raised.value.found == tuple(next(iter(tensors.values())).shape)


def test_conv1d_replacement_of_other_inputs_is_refused(tmp_path: Path) -> None:
    """Its inputs come first."""
    spec = discover(tiny_gpt2())
    tensors = {f"{WRAPPER}transformer.h.0.mlp.c_fc.weight": draw(63, 256)}

    with pytest.raises(AdapterMismatchError):
        read_adapter(write_peft(tmp_path, tensors, peft_type="LORA"), spec)


CONFLICTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "weight and factors": ({f"{Q}.weight": draw(8, 12)}, "replaces what other tensors"),
    "bias and a delta of it": (
        {f"{Q}.bias": draw(8), f"{Q}.lora_B.bias": draw(8, seed=1)},
        "replaces what other tensors",
    ),
    "two weights": (
        {f"{V}.weight": draw(8, 12), f"{V}.base_layer.weight": draw(8, 12, seed=1)},
        "replaces what .* replaces",
    ),
    "a bias that is no vector": ({f"{V}.bias": draw(8, 1)}, "a bias has 1 dimension"),
    "a weight of integers": ({f"{V}.weight": torch.ones(8, 12, dtype=torch.int64)}, "int64"),
    "a weight of NaN": ({f"{V}.weight": torch.full((8, 12), torch.nan)}, "holds NaN"),
}


@pytest.mark.parametrize(("tensors", "problem"), CONFLICTS.values(), ids=CONFLICTS)
def test_replacement_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, tensors: dict[str, Tensor], problem: str
) -> None:
    """One of two would have to be dropped."""
    with pytest.raises(AdapterTensorError, match=problem):
        read_adapter(peft_lora(tmp_path, tensors), base_spec())


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{V}.weight": draw(5, 12)},
        {f"{V}.weight": draw(5, 12), f"{V}.bias": draw(8)},
        {f"{V}.bias": draw(5)},
    ],
    ids=["weight alone", "weight and bias", "bias alone"],
)
def test_weight_and_bias_must_keep_one_number_of_outputs(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    """A head of five labels cannot add eight biases."""
    with pytest.raises(UnsupportedModuleError, match=rf"'{V}' .*outputs, but a bias of"):
        read_adapter(peft_lora(tmp_path, tensors), base_spec())


def test_saved_module_without_tensors_is_reported(tmp_path: Path) -> None:
    """PEFT leaves such a module as the base has it; so it is here, and said."""
    tensors = lora(PEFT_Q) | {f"{WRAPPER}{V}.weight": draw(8, 12)}
    saved = ["v_proj", "score", "block.v_proj"]
    folder = write_peft(tmp_path, tensors, peft_type="LORA", lora_alpha=6, modules_to_save=saved)

    adapter = read_adapter(folder, base_spec())

    assert adapter.warnings == ("'score' of modules_to_save has no tensors in the file",)


def test_saved_modules_beyond_counting_are_not_looked_for(tmp_path: Path) -> None:
    """A hostile list must not cost time; that it was not regarded is said."""
    names = [f"name_{index}" for index in range(201)]
    folder = write_peft(tmp_path, lora(PEFT_Q), peft_type="LORA", modules_to_save=names)

    adapter = read_adapter(folder, base_spec())

    assert adapter.warnings == ("the 201 names of modules_to_save were not held against the file",)

"""Where adapter files, and the programs that write them, mislead: each trap once, by name."""

from pathlib import Path

import lycoris
import pytest
import torch
from torch import nn

from lokr_core.errors import AdapterTensorError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import (
    FLAT_Q,
    FLAT_V,
    PEFT_Q,
    PEFT_V,
    Q,
    V,
    base_spec,
    draw,
    full,
    lora,
    low_rank,
    unscaled,
    write,
    write_peft,
)
from tests.tiny import lycoris_file, lycoris_merged, tiny_gpt2, tiny_llama


def test_two_full_factors_are_scaled_in_peft_and_not_in_lycoris(tmp_path: Path) -> None:
    """The same tensors mean two deltas, and only who wrote them tells which."""
    peft = read_adapter(write_peft(tmp_path, full(PEFT_Q, alpha=None)), base_spec())
    lycoris_family = read_adapter(write(tmp_path, full(FLAT_Q)), base_spec())

    assert peft.scales.tolist() == [2.0]
    assert lycoris_family.scales.tolist() == [1.0]


@pytest.mark.parametrize("alpha", [float("inf"), 9999220736.0, 9984.0, 1e8, 1e4, 1.0, 0.0])
def test_filler_alpha_of_two_full_factors_is_ignored(tmp_path: Path, alpha: float) -> None:
    """Trainers write a huge dimension for "full", which overflows to any of these."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q, alpha=alpha)), base_spec())

    assert adapter.scales.tolist() == [1.0]


def test_rs_lora_of_two_full_factors_is_scaled_by_the_root_of_dim(tmp_path: Path) -> None:
    """LyCORIS trains that at sqrt(dim); its metadata is the only trace of it."""
    linear = nn.Linear(12, 8, bias=False, dtype=torch.float64)
    module = lycoris.LokrModule(
        FLAT_Q, linear, lora_dim=16, alpha=1, full_matrix=True, rs_lora=True
    ).double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=seed))
    tensors = {f"lycoris_proj.{leaf}": t.contiguous() for leaf, t in module.state_dict().items()}
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_dim": "16"}
    base = nn.Module()
    base.proj = linear

    adapter = read_adapter(write(tmp_path, tensors, metadata), discover(base))

    units = torch.eye(12, dtype=torch.float64)
    answer = (module(units) - linear(units)).mT.detach()
    torch.testing.assert_close(adapter.delta_weights()["proj.weight"], answer)
    assert adapter.scales.tolist() == [4.0]


def test_forward_counts_where_lycoris_merges_otherwise(tmp_path: Path) -> None:
    """LyCORIS's merge applies the scale twice; what was trained is what its forward does."""
    made = lycoris_file(tiny_llama, tmp_path / "a.safetensors", dim=4, alpha=2.0)
    name = "model.layers.0.mlp.down_proj.weight"
    base = tiny_llama(torch.float64)
    merged = lycoris_merged(tiny_llama, made)

    delta = read_adapter(made.path, discover(base)).delta_weights()[name]

    answer = merged.get_parameter(name) - base.get_parameter(name)
    torch.testing.assert_close(delta, answer.detach())


def test_bypass_mode_is_reported(tmp_path: Path) -> None:
    """LyCORIS before 4 ignored the scale there, and nothing says which version trained."""
    metadata = {"lycoris_config": '{"bypass_mode": true, "linear_dim": 3}'}
    path = write(tmp_path, low_rank(FLAT_Q), metadata)

    adapter = read_adapter(path, base_spec())

    assert adapter.scales.tolist() == [2.0]
    assert "bypass mode" in adapter.warnings[0]
    assert "scale_override=1" in adapter.warnings[0]
    assert read_adapter(path, base_spec(), scale_override=1).warnings == ()


def test_lokr_of_peft_before_0_14_is_left_unscaled(tmp_path: Path) -> None:
    """It was trained at scale 1 whatever alpha says; the missing field is the only tell."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q, alpha=None), rank_dropout_scale=...)

    adapter = read_adapter(folder, base_spec())

    assert adapter.scales.tolist() == [1.0]
    assert adapter.info.scales[0].source == "1: peft before 0.14 applied no scale to LoKr"
    assert "peft before 0.14" in adapter.warnings[0]
    assert read_adapter(folder, base_spec(), alpha=6).scales.tolist() == [2.0]


def test_tucker_core_is_refused_by_name(tmp_path: Path) -> None:
    """Beside one, w2_a lies transposed; a linear module has none, so the file is not for it."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.lokr_t2": torch.ones(3, 3, 1, 1)}

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.lokr_t2' is a Tucker core"):
        read_adapter(write(tmp_path, tensors), base_spec())


@pytest.mark.parametrize(("o1", "i1"), [(1, 12), (8, 1), (2, 6), (4, 3), (8, 12)])
def test_shapes_come_from_the_tensors_alone(tmp_path: Path, o1: int, i1: int) -> None:
    """Tools and versions factorise differently; every split that multiplies out is right."""
    tensors = {
        f"{FLAT_Q}.alpha": torch.tensor(1.0),
        f"{FLAT_Q}.lokr_w1": draw(o1, i1, seed=1),
        f"{FLAT_Q}.lokr_w2": draw(8 // o1, 12 // i1, seed=2),
    }

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    delta = adapter.delta_weights()[f"{Q}.weight"]
    torch.testing.assert_close(delta, unscaled(tensors, FLAT_Q))


def test_w1_may_be_larger_than_w2(tmp_path: Path) -> None:
    """A large factor, or LyCORIS's unbalanced factorisation, turns the sizes round."""
    tensors = {
        f"{FLAT_Q}.alpha": torch.tensor(4.0),
        f"{FLAT_Q}.lokr_w1_a": draw(8, 2, seed=1),
        f"{FLAT_Q}.lokr_w1_b": draw(2, 6, seed=2),
        f"{FLAT_Q}.lokr_w2": draw(1, 2, seed=3),
    }
    a, b, w2 = (
        tensors[f"{FLAT_Q}.{leaf}"].double() for leaf in ("lokr_w1_a", "lokr_w1_b", "lokr_w2")
    )

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    torch.testing.assert_close(adapter.delta_weights()[f"{Q}.weight"], 2 * torch.kron(a @ b, w2))


def test_tensors_that_peft_would_drop_are_applied_with_a_warning(tmp_path: Path) -> None:
    """The file is what was trained; a target list that disagrees is worth a look."""
    tensors = full(PEFT_Q, alpha=None) | full(PEFT_V, alpha=None)

    by_list = read_adapter(write_peft(tmp_path, tensors, target_modules=["q_proj"]), base_spec())
    by_pattern = read_adapter(write_peft(tmp_path, tensors, target_modules=r".*\.q.*"), base_spec())
    excluded = read_adapter(
        write_peft(tmp_path, tensors, target_modules="all-linear", exclude_modules=["v_proj"]),
        base_spec(),
    )

    for adapter in (by_list, by_pattern, excluded):
        assert set(adapter.modules()) == {Q, V}
        assert "1 modules are changed though" in adapter.warnings[0]
        assert repr(V) in adapter.warnings[0]


def test_target_without_tensors_is_reported(tmp_path: Path) -> None:
    """PEFT leaves such a module at its start, which is the base; so it is here, and said."""
    targets = ["q_proj", "v_proj"]
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules=targets)

    adapter = read_adapter(folder, base_spec())

    assert adapter.warnings == ("'v_proj' of target_modules has no tensors in the file",)


@pytest.mark.parametrize("by_output", [True, False])
def test_dora_axis_is_told_by_shape_on_a_square_module(tmp_path: Path, by_output: bool) -> None:
    """Sizes agree there; [n, 1] is by output, [1, n] by input."""
    base = nn.Module()
    base.proj = nn.Linear(6, 6, bias=False, dtype=torch.float64)
    magnitude = draw(6, 1).abs() if by_output else draw(1, 6).abs()
    tensors = {
        "lycoris_proj.alpha": torch.tensor(1.0),
        "lycoris_proj.lokr_w1": draw(2, 3, seed=1),
        "lycoris_proj.lokr_w2": draw(3, 2, seed=2),
        "lycoris_proj.dora_scale": magnitude,
    }
    weight = base.proj.weight.detach()
    adapted = weight + unscaled({k: t for k, t in tensors.items() if "lokr" in k}, "lycoris_proj")
    norm = adapted.norm(dim=1 if by_output else 0, keepdim=True)

    adapter = read_adapter(write(tmp_path, tensors), discover(base))

    wanted = adapted * magnitude.double() / norm - weight
    torch.testing.assert_close(adapter.delta_weights()["proj.weight"], wanted)


def test_one_file_may_mix_algorithms_ranks_and_forms(tmp_path: Path) -> None:
    """Whether a factor is low-rank is decided per layer, and presets choose algorithms by layer."""
    kohya = {
        f"{FLAT_V}.lora_down.weight": draw(2, 12, seed=4),
        f"{FLAT_V}.lora_up.weight": draw(8, 2, seed=5),
        f"{FLAT_V}.alpha": torch.tensor(1.0),
    }

    adapter = read_adapter(write(tmp_path, low_rank(FLAT_Q) | kohya), base_spec(torch.float64))

    assert adapter.info.algorithms == ("lokr", "lora")
    assert adapter.scales.tolist() == [2.0, 0.5]
    wanted = 0.5 * kohya[f"{FLAT_V}.lora_up.weight"] @ kohya[f"{FLAT_V}.lora_down.weight"]
    torch.testing.assert_close(adapter.delta_weights()[f"{V}.weight"], wanted.double())


def test_conv1d_of_transformers_takes_a_lokr(tmp_path: Path) -> None:
    """PEFT refuses to train one there; a file over it is served all the same."""
    spec = discover(tiny_gpt2())
    name = "transformer.h.0.mlp.c_fc"
    num_in, num_out = tiny_gpt2().get_parameter(f"{name}.weight").shape
    tensors = {
        "lycoris_transformer_h_0_mlp_c_fc.lokr_w1": draw(4, 2, seed=1),
        "lycoris_transformer_h_0_mlp_c_fc.lokr_w2": draw(num_out // 4, num_in // 2, seed=2),
        "lycoris_transformer_h_0_mlp_c_fc.alpha": torch.tensor(1.0),
    }

    delta = read_adapter(write(tmp_path, tensors), spec).delta_weights()[f"{name}.weight"]

    assert delta.shape == (num_in, num_out)
    module = "lycoris_transformer_h_0_mlp_c_fc"
    wanted = unscaled({k: t for k, t in tensors.items() if "lokr" in k}, module).mT.float()
    torch.testing.assert_close(delta, wanted)


def test_head_of_a_tied_model_changes_alone(tmp_path: Path) -> None:
    """The embedding shares the head's weight, but an adapter of the head is not for it."""
    model = tiny_gpt2()
    made = lycoris_file(tiny_gpt2, tmp_path / "a.safetensors", targets="lm_head$")

    adapter = read_adapter(made.path, discover(model))

    assert model.lm_head.weight is model.transformer.wte.weight
    assert set(adapter.delta_weights()) == {"lm_head.weight"}


def test_nan_and_truncation_are_found(tmp_path: Path) -> None:
    """Both are met in the wild; each has its cases among the hostile files."""
    tensors = low_rank(FLAT_Q)
    tensors[f"{FLAT_Q}.lokr_w2_b"][1, 1] = torch.nan

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.lokr_w2_b' holds NaN"):
        read_adapter(write(tmp_path, tensors), base_spec())


def test_w1_of_ones_is_legitimate(tmp_path: Path) -> None:
    """Some trainers start there; it must not be taken for a factor that was never trained."""
    tensors = full(FLAT_Q) | {f"{FLAT_Q}.lokr_w1": torch.ones(2, 3)}

    assert read_adapter(write(tmp_path, tensors), base_spec()).warnings == ()


def test_t_lora_is_refused_by_name(tmp_path: Path) -> None:
    """Such a file looks complete, but lacks the decomposition of the base that it builds on."""
    tensors = {f"{FLAT_Q}.q_layer.weight": torch.ones(2, 12), **low_rank(FLAT_V)}

    with pytest.raises(AdapterTensorError, match="algorithm other than LoKr"):
        read_adapter(write(tmp_path, tensors), base_spec())


def test_wrong_alpha_in_the_file_can_be_overridden(tmp_path: Path) -> None:
    """A rank that was changed after alpha was set leaves no trace in the file."""
    path = write(tmp_path, low_rank(FLAT_Q, alpha=96.0))

    assert read_adapter(path, base_spec()).scales.tolist() == [32.0]
    assert read_adapter(path, base_spec(), scale_override=1.0).scales.tolist() == [1.0]


def test_rslora_divides_by_the_root_of_r(tmp_path: Path) -> None:
    """And it does so with a rank that the caller gives, too."""
    folder = write_peft(
        tmp_path, lora(PEFT_Q, rank=4), peft_type="LORA", r=4, lora_alpha=6, use_rslora=True
    )

    assert read_adapter(folder, base_spec()).scales.tolist() == [3.0]
    assert read_adapter(folder, base_spec(), rank=9).scales.tolist() == [2.0]

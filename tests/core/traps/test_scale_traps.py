"""Traps in the scale: one number for each module, which several tools get wrong."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer

from lokr_core.errors import AdapterTensorError
from lokr_core.formats import read_adapter
from tests.core.formats.hand_made import (
    FLAT_Q,
    PEFT_Q,
    base_spec,
    full,
    lora,
    low_rank,
    write,
    write_peft,
)
from tests.core.traps.peers import change_by, delta_of, read, train, trained_change
from tests.parity.layers import LAYERS, PATH
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft


def test_trap_01_two_full_factors_are_scaled_in_peft_and_not_in_lycoris(tmp_path: Path) -> None:
    """The same tensors mean two deltas, and only who wrote them tells which."""
    peft = read_adapter(write_peft(tmp_path, full(PEFT_Q, alpha=None)), base_spec())
    lycoris = read_adapter(write(tmp_path, full(FLAT_Q)), base_spec())

    assert peft.scales.tolist() == [2.0]
    assert lycoris.scales.tolist() == [1.0]


@pytest.mark.parametrize("alpha", [float("inf"), 9999220736.0, 9984.0, 1e8, 1e4, 1.0, 0.0])
def test_trap_02_filler_alpha_of_two_full_factors_is_ignored(tmp_path: Path, alpha: float) -> None:
    """Trainers write a huge dimension for "full", which overflows to any of these."""
    adapter = read_adapter(write(tmp_path, full(FLAT_Q, alpha=alpha)), base_spec())

    assert adapter.scales.tolist() == [1.0]


def test_trap_02_infinite_alpha_of_a_low_rank_factor_is_refused(tmp_path: Path) -> None:
    """There it is no filler: the scale that it stood for is lost."""
    path = write(tmp_path, low_rank(FLAT_Q, alpha=float("inf")))

    with pytest.raises(AdapterTensorError, match=rf"'{FLAT_Q}\.alpha' is inf"):
        read_adapter(path, base_spec())


def test_trap_03_rs_lora_of_two_full_factors_is_scaled_by_the_root_of_dim(tmp_path: Path) -> None:
    """LyCORIS trains that at sqrt(dim); its metadata is the only trace of it."""
    trainer = Lycoris(
        algorithm="lokr",
        dim=16,
        options={"full_matrix": True, "rs_lora": True},
        metadata={"ss_network_module": "lycoris.kohya", "ss_network_dim": "16"},
    )
    trained = train(trainer, "linear", tmp_path)

    adapter = read(trained.path, "linear")

    assert adapter.scales.tolist() == [4.0]
    torch.testing.assert_close(change_by(adapter, "linear"), trained_change(trained, "linear"))


@pytest.mark.parametrize("algorithm", ["lokr", "loha"])
def test_trap_04_forward_counts_where_lycoris_merges_otherwise(
    tmp_path: Path, algorithm: str
) -> None:
    """LyCORIS's merge applies the scale twice; what was trained is what its forward does."""
    trainer = Lycoris(algorithm=algorithm, dim=2, alpha=3.0)
    trained = train(trainer, "linear", tmp_path)
    wanted = trained_change(trained, "linear")
    network = trainer.reload(LAYERS["linear"].base(torch.float64), trained.path)
    merged, _ = network.loras[0].get_diff_weight()

    delta = delta_of(read(trained.path, "linear"))

    torch.testing.assert_close(change_by(read(trained.path, "linear"), "linear"), wanted)
    torch.testing.assert_close(merged.detach(), 1.5 * delta)  # the scale, again


def test_trap_05_bypass_mode_is_reported(tmp_path: Path) -> None:
    """LyCORIS before 4 ignored the scale there, and nothing says which version trained."""
    metadata = {"lycoris_config": '{"bypass_mode": true, "linear_dim": 3}'}
    path = write(tmp_path, low_rank(FLAT_Q), metadata)

    adapter = read_adapter(path, base_spec())

    assert adapter.scales.tolist() == [2.0]
    assert "bypass mode" in adapter.warnings[0]
    assert "scale_override=1" in adapter.warnings[0]
    assert read_adapter(path, base_spec(), scale_override=1).warnings == ()


def test_trap_06_lokr_of_peft_before_0_14_is_left_unscaled(tmp_path: Path) -> None:
    """It was trained at scale 1 whatever alpha says; the missing field is the only tell."""
    folder = write_peft(tmp_path, low_rank(PEFT_Q, alpha=None), rank_dropout_scale=...)

    adapter = read_adapter(folder, base_spec())

    assert adapter.scales.tolist() == [1.0]
    assert adapter.info.scales[0].source == "1: peft before 0.14 applied no scale to LoKr"
    assert "peft before 0.14" in adapter.warnings[0]
    assert read_adapter(folder, base_spec(), alpha=6).scales.tolist() == [2.0]


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "lora"])
def test_trap_29_a_weight_multiplies_the_delta_as_in_peft(tmp_path: Path, algorithm: str) -> None:
    """PEFT's set_scale(w) gives w * alpha / r: alpha is not applied again."""
    trained = train(Peft(algorithm=algorithm), "linear", tmp_path)
    wrapped = trained.model.get_submodule(f"base_model.model.{PATH}")
    assert isinstance(wrapped, LycorisLayer | LoraLayer)
    wrapped.set_scale("default", 0.5)
    adapter = read(trained.path, "linear")

    change = trained_change(trained, "linear")

    assert adapter.scales.tolist() == [1.5]
    torch.testing.assert_close(0.5 * change_by(adapter, "linear"), change)


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "locon"])
def test_trap_29_a_weight_multiplies_the_delta_as_in_lycoris(
    tmp_path: Path, algorithm: str
) -> None:
    """LyCORIS's multiplier is the weight of a mix, where there is no DoRA."""
    trainer = Lycoris(algorithm=algorithm)
    base = LAYERS["linear"].base(torch.float64)
    trained = trainer.train(base, tmp_path, seed=1)
    adapter = read(trained.path, "linear")
    reloaded = LAYERS["linear"].base(torch.float64)
    trainer.reload(reloaded, trained.path).set_multiplier(-0.7)

    with torch.no_grad():
        x = LAYERS["linear"].inputs(4, torch.float64)
        change = reloaded(x) - LAYERS["linear"].base(torch.float64)(x)

    torch.testing.assert_close(-0.7 * change_by(adapter, "linear"), change)


def test_trap_33_wrong_alpha_in_the_file_can_be_overridden(tmp_path: Path) -> None:
    """A rank that was changed after alpha was set leaves no trace in the file."""
    path = write(tmp_path, low_rank(FLAT_Q, alpha=96.0))

    assert read_adapter(path, base_spec()).scales.tolist() == [32.0]
    assert read_adapter(path, base_spec(), scale_override=1.0).scales.tolist() == [1.0]


def test_trap_33_rank_can_be_overridden_under_rslora(tmp_path: Path) -> None:
    """Which divides by the root of the rank, also of one that the caller gives."""
    folder = write_peft(
        tmp_path, lora(PEFT_Q, rank=4), peft_type="LORA", r=4, lora_alpha=6, use_rslora=True
    )

    assert read_adapter(folder, base_spec()).scales.tolist() == [3.0]
    assert read_adapter(folder, base_spec(), rank=9).scales.tolist() == [2.0]

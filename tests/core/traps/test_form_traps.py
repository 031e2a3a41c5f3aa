"""Traps in the forms of factors."""

from pathlib import Path

import pytest
import torch

from lokr_core.errors import AdapterError
from lokr_core.formats import read_adapter
from tests.core.formats.hand_made import FLAT_Q, Q, base_spec, draw, full, low_rank, unscaled, write
from tests.core.traps.peers import change_by, read, train, trained_change
from tests.parity.layers import PATH, SIDE
from tests.parity.lycoris_peer import Lycoris


def test_trap_09_tucker_core_of_a_linear_module_is_refused(tmp_path: Path) -> None:
    """Beside one, w2_a lies transposed; a linear module has none, so the file is not for it."""
    tensors = low_rank(FLAT_Q) | {f"{FLAT_Q}.lokr_t2": torch.ones(3, 3, 1, 1)}

    with pytest.raises(AdapterError, match=r"block.q_proj"):
        read_adapter(write(tmp_path, tensors), base_spec())


@pytest.mark.parametrize(("o1", "i1"), [(1, 12), (8, 1), (2, 6), (4, 3), (8, 12)])
def test_trap_10_shapes_come_from_the_tensors_alone(tmp_path: Path, o1: int, i1: int) -> None:
    """Tools and versions factorise differently; every split that multiplies out is right."""
    tensors = {
        f"{FLAT_Q}.alpha": torch.tensor(1.0),
        f"{FLAT_Q}.lokr_w1": draw(o1, i1, seed=1),
        f"{FLAT_Q}.lokr_w2": draw(8 // o1, 12 // i1, seed=2),
    }

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    delta = adapter.delta_weights()[f"{Q}.weight"]
    torch.testing.assert_close(delta, unscaled(tensors, FLAT_Q))


def test_trap_11_w1_may_be_larger_than_w2(tmp_path: Path) -> None:
    """A large factor, or LyCORIS's unbalanced factorisation, turns the sizes round."""
    trainer = Lycoris(algorithm="lokr", options={"unbalanced_factorization": True, "factor": 2})
    trained = train(trainer, "linear", tmp_path)

    adapter = read(trained.path, "linear")

    change = trained_change(trained, "linear")
    torch.testing.assert_close(change_by(adapter, "linear"), change)


def test_trap_16_one_file_may_mix_algorithms_ranks_factors_and_forms(tmp_path: Path) -> None:
    """Presets choose algorithms by layer, and whether a factor is low-rank is decided there."""
    trainer = Lycoris(
        algorithm="lokr",
        modules={PATH: {"factor": 8, "dim": 2}, SIDE: {"algo": "loha", "dim": 3, "alpha": 1.0}},
    )
    trained = train(trainer, "linear", tmp_path)

    adapter = read(trained.path, "linear")

    assert adapter.info.algorithms == ("loha", "lokr")
    assert sorted(adapter.scales.tolist()) == [1 / 3, 1.5]
    torch.testing.assert_close(change_by(adapter, "linear"), trained_change(trained, "linear"))


def test_trap_30_w1_of_ones_is_legitimate(tmp_path: Path) -> None:
    """Some trainers start there; it must not be taken for a factor that was never trained."""
    tensors = full(FLAT_Q) | {f"{FLAT_Q}.lokr_w1": torch.ones(2, 3)}

    adapter = read_adapter(write(tmp_path, tensors), base_spec(torch.float64))

    assert adapter.warnings == ()
    delta = adapter.delta_weights()[f"{Q}.weight"]
    torch.testing.assert_close(delta, tensors[f"{FLAT_Q}.lokr_w2"].double().tile(2, 3))

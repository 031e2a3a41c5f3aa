"""Traps in DoRA, which is not linear in the delta."""

from pathlib import Path

import pytest
import torch

import lokr_core
from lokr_core import AdapterMix
from tests.core.traps.peers import change_by, delta_of, read, train, trained_change
from tests.parity.layers import LAYERS, PATH, Base
from tests.parity.lycoris_peer import Lycoris

DORA = {"weight_decompose": True}


@pytest.mark.parametrize("by_output", [True, False])
def test_trap_14_axis_is_told_by_shape_on_a_square_module(tmp_path: Path, by_output: bool) -> None:
    """Sizes agree there; [n, 1] is by output, [1, n] by input."""
    trainer = Lycoris(algorithm="lokr", options={**DORA, "wd_on_out": by_output})
    trained = train(trainer, "square linear", tmp_path)

    adapter = read(trained.path, "square linear")

    change = trained_change(trained, "square linear")
    torch.testing.assert_close(change_by(adapter, "square linear"), change)


def test_trap_14_norm_is_of_the_weight_with_its_delta(tmp_path: Path) -> None:
    """Dividing by the norm of the weight alone, as some do, is off by more than the delta."""
    trained = train(Lycoris(algorithm="lokr", options=DORA), "linear", tmp_path)
    adapter = read(trained.path, "linear")
    weight = LAYERS["linear"].base(torch.float64).get_parameter(f"{PATH}.weight").detach()

    adapted = weight + delta_of(adapter)

    gain = adapter.module(PATH).gain
    assert gain is not None
    wanted = trained_change(trained, "linear")
    torch.testing.assert_close(change_by(adapter, "linear"), wanted)
    magnitude = adapted.norm(dim=1)
    without = adapted / gain.values.double()[:, None]  # W + delta
    torch.testing.assert_close(gain.values.double() * without.norm(dim=1), magnitude)
    assert not torch.allclose(without.norm(dim=1), weight.norm(dim=1), rtol=0.1)


@pytest.mark.parametrize("way", ["unmerged", "merged"])
@torch.no_grad()
def test_trap_14_weight_0_is_off_and_a_half_is_half_way(tmp_path: Path, way: str) -> None:
    """LyCORIS gives W + delta at 0, which is neither off nor halfway to anything."""
    trained = train(Lycoris(algorithm="lokr", options=DORA), "linear", tmp_path)
    wanted = trained_change(trained, "linear")
    base = LAYERS["linear"].base(torch.float64)
    x = LAYERS["linear"].inputs(4, torch.float64)
    plain = base(x)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(trained.path, adapted.spec)
    adapted.add(adapter)

    off = _answer(adapted, base, x, AdapterMix.of({adapter: 0.0}), way)
    half = _answer(adapted, base, x, AdapterMix.of({adapter: 0.5}), way)

    assert torch.equal(off, plain)
    torch.testing.assert_close(half - plain, 0.5 * wanted)


def _answer(
    adapted: lokr_core.Adapted, base: Base, x: torch.Tensor, mix: AdapterMix, way: str
) -> torch.Tensor:
    with adapted.using(mix, apply="merged" if way == "merged" else "unmerged"):
        answer = base(x)
    assert isinstance(answer, torch.Tensor)
    return answer


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "locon"])
def test_trap_15_magnitude_is_never_left_out(tmp_path: Path, algorithm: str) -> None:
    """Others filter the magnitude out with a warning and go on: a wrong answer, and no error."""
    trained = train(Lycoris(algorithm=algorithm, options=DORA), "linear", tmp_path)

    adapter = read(trained.path, "linear")

    assert adapter.module(PATH).gain is not None
    assert adapter.warnings == ()
    torch.testing.assert_close(change_by(adapter, "linear"), trained_change(trained, "linear"))

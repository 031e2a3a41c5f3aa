"""Traps in convolutions, whose factors have more ways to lie."""

from pathlib import Path

import pytest
import torch

import lokr_core
from lokr_core import AdapterMix
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import draw, write
from tests.core.traps.peers import change_by, delta_of, read, train, trained_change
from tests.parity.layers import LAYERS, PATH
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft

MODULE = f"lycoris_{PATH.replace('.', '_')}"
TUCKER = {"use_tucker": True}


def test_trap_07_full_w2_of_conv1d_is_scrambled_as_in_peft(tmp_path: Path) -> None:
    """PEFT lets kron pad w1 on the wrong side; what was trained is that, not the right one."""
    trained = train(Peft(algorithm="lokr", r=16), "conv1d", tmp_path)

    adapter = read(trained.path, "conv1d")

    torch.testing.assert_close(change_by(adapter, "conv1d"), trained_change(trained, "conv1d"))


def test_trap_07_full_w2_of_conv1d_is_a_kronecker_product_in_lycoris(tmp_path: Path) -> None:
    """The same tensors, by another writer, mean what they look like."""
    w1, w2 = draw(4, 5, seed=1), draw(6, 8, 3, seed=2)
    tensors = {f"{MODULE}.lokr_w1": w1, f"{MODULE}.lokr_w2": w2, f"{MODULE}.alpha": torch.ones(())}
    spec = discover(LAYERS["conv1d"].base(torch.float64))

    delta = delta_of(read_adapter(write(tmp_path, tensors), spec))

    wanted = torch.einsum("pu,qvk->pquvk", w1.double(), w2.double())
    torch.testing.assert_close(delta, wanted.reshape(24, 40, 3))


@pytest.mark.parametrize("algorithm", ["lokr", "loha"])
def test_trap_08_core_of_conv1d_has_four_dimensions_in_peft(tmp_path: Path, algorithm: str) -> None:
    """LyCORIS writes three for the same thing."""
    peft = Peft(algorithm=algorithm, options={"use_effective_conv2d": True})
    (tmp_path / "peft").mkdir()
    (tmp_path / "lycoris").mkdir()
    by_peft = train(peft, "conv1d", tmp_path / "peft")
    by_lycoris = train(Lycoris(algorithm=algorithm, options=TUCKER), "conv1d", tmp_path / "lycoris")

    for trained in (by_peft, by_lycoris):
        adapter = read(trained.path, "conv1d")

        torch.testing.assert_close(change_by(adapter, "conv1d"), trained_change(trained, "conv1d"))


def test_trap_09_w2_a_lies_transposed_beside_a_core(tmp_path: Path) -> None:
    """The core is the only tell, since both sizes may be equal."""
    core, a, b = draw(6, 6, 3, 3, seed=2), draw(6, 6, seed=3), draw(6, 8, seed=4)
    w1 = draw(4, 5, seed=1)
    leaves = {"lokr_w1": w1, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    tensors = {f"{MODULE}.{leaf}": tensor for leaf, tensor in leaves.items()}
    tensors[f"{MODULE}.alpha"] = torch.tensor(6.0)
    spec = discover(LAYERS["conv2d"].base(torch.float64))

    delta = delta_of(read_adapter(write(tmp_path, tensors), spec))

    w2 = torch.einsum("ijkl,ip,jr->prkl", core.double(), a.double(), b.double())
    wanted = torch.einsum("pu,qvkl->pquvkl", w1.double(), w2).reshape(24, 40, 3, 3)
    torch.testing.assert_close(delta, wanted)


def test_trap_09_rank_beside_a_core_is_that_of_w2_b(tmp_path: Path) -> None:
    """w2_a's columns are outputs there, which LyCORIS's own reload takes for the rank."""
    trained = train(Lycoris(algorithm="lokr", alpha=3.0, options=TUCKER), "conv2d", tmp_path)

    adapter = read(trained.path, "conv2d")

    assert adapter.scales.tolist() == [1.5]
    torch.testing.assert_close(change_by(adapter, "conv2d"), trained_change(trained, "conv2d"))


def test_trap_32_products_that_lie_strided_are_merged(tmp_path: Path) -> None:
    """``torch.kron`` refuses what einsum returns, which is what a core is multiplied out by."""
    trained = train(Lycoris(algorithm="lokr", options=TUCKER), "conv2d", tmp_path)
    base = LAYERS["conv2d"].base(torch.float64)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(trained.path, adapted.spec, "a")
    adapted.add(adapter)
    x = LAYERS["conv2d"].inputs(4, torch.float64)

    with torch.no_grad():
        plain = base(x)
        with adapted.using(AdapterMix.of({adapter: 1.0}), apply="merged"):
            found = base(x)

    torch.testing.assert_close(found - plain, trained_change(trained, "conv2d"))

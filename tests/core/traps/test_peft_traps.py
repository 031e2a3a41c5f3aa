"""Traps in what PEFT accepts, drops and replaces."""

from pathlib import Path

import pytest
import torch

import lokr_core
from lokr_core import AdapterMix, AdapterRef
from lokr_core.errors import AdapterNotAddedError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import PEFT_Q, PEFT_V, Q, V, base_spec, full, write_peft
from tests.core.traps.peers import change_by, read, train, trained_change
from tests.parity.compare import Part, Twin, change_of
from tests.parity.layers import LAYERS
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft
from tests.tiny import conv1d_lokr_file, conv1d_lokr_merged, tiny_gpt2


def test_trap_12_every_row_gets_the_adapter_that_it_names(tmp_path: Path) -> None:
    """PEFT takes names for the rows of a LoKr batch, and gives every row the active adapter."""
    layer = LAYERS["linear"]
    trained = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        base = layer.base(torch.float64)
        trained.append(Peft(algorithm="lokr").train(base, tmp_path / str(seed), seed))
    changes = [change_of(one, layer, 2) for one in trained]
    twin = Twin(layer, torch.float64, 2)
    for one in trained:
        twin.add(one.path)

    found = twin.change([(Part(adapter=1, weight=1.0),), (Part(adapter=0, weight=1.0),)], "auto")

    torch.testing.assert_close(found[0], changes[1][0])
    torch.testing.assert_close(found[1], changes[0][1])


def test_trap_12_a_name_that_is_not_there_is_an_error() -> None:
    """PEFT lets such a name pass, and the row gets another adapter."""
    adapted = lokr_core.attach(LAYERS["linear"].base(torch.float32))
    missing = AdapterRef(adapter_id="missing", version="0" * 16)

    with (
        pytest.raises(AdapterNotAddedError, match="missing"),
        adapted.using(AdapterMix.of({missing: 1.0})),
    ):
        pytest.fail("entered")


def test_trap_13_tensors_that_peft_would_drop_are_applied_with_a_warning(tmp_path: Path) -> None:
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


def test_trap_13_target_without_tensors_is_reported(tmp_path: Path) -> None:
    """PEFT leaves such a module at its start, which is the base; so it is here, and said."""
    targets = ["q_proj", "v_proj"]
    folder = write_peft(tmp_path, full(PEFT_Q, alpha=None), target_modules=targets)

    adapter = read_adapter(folder, base_spec())

    assert adapter.warnings == ("'v_proj' of target_modules has no tensors in the file",)


@pytest.mark.parametrize("excluded", [["v_proj"], r"block\.v_.*"], ids=str)
def test_trap_13_target_that_is_excluded_needs_no_tensors(tmp_path: Path, excluded: object) -> None:
    """PEFT writes out what "all-linear" stands for, those that are excluded among them."""
    folder = write_peft(
        tmp_path, full(PEFT_Q, alpha=None), target_modules=[Q, V], exclude_modules=excluded
    )

    assert read_adapter(folder, base_spec()).warnings == ()


@pytest.mark.parametrize("rank", [4, None])
def test_trap_23_conv1d_of_transformers_takes_a_lokr(tmp_path: Path, rank: int | None) -> None:
    """PEFT and LyCORIS refuse to train one there; a file over it is served all the same."""
    path = conv1d_lokr_file(tiny_gpt2, tmp_path / "a.safetensors", rank=rank)
    name = "transformer.h.0.mlp.c_fc.weight"

    adapter = read_adapter(path, discover(tiny_gpt2(torch.float64)))

    merged = conv1d_lokr_merged(tiny_gpt2, path).get_parameter(name)
    base = tiny_gpt2(torch.float64).get_parameter(name)
    torch.testing.assert_close(adapter.delta_weights()[name], (merged - base).detach())


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "locon"])
def test_trap_23_conv1d_is_the_linear_layer_of_its_matrix(tmp_path: Path, algorithm: str) -> None:
    """Its weight lies transposed, which is no part of what a file says."""
    trained = train(Lycoris(algorithm=algorithm), "transformers Conv1D", tmp_path)

    adapter = read(trained.path, "transformers Conv1D")

    change = trained_change(trained, "transformers Conv1D")
    torch.testing.assert_close(change_by(adapter, "transformers Conv1D"), change)

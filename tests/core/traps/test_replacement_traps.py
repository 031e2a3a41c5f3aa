"""Traps in what takes the place of the base's parameters, or is added to its biases and norms."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lokr_core
from lokr_core import AdapterMix
from lokr_core.adapted import ApplyWord
from lokr_core.errors import MixError
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import draw, write
from tests.core.traps.peers import change_by, read, train, trained_change
from tests.parity.compare import Part, Twin, change_of
from tests.parity.layers import LAYERS, PATH, SIDE
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft

REPLACED = Peft(algorithm="lora", targets=(SIDE,), options={"modules_to_save": ["to_out"]})
WAYS = pytest.mark.parametrize("way", ["unmerged", "merged"])


@WAYS
def test_trap_25_rows_of_a_batch_carry_their_own_replacement(
    tmp_path: Path, way: ApplyWord
) -> None:
    """A replaced module belongs to one adapter: neither to the base nor to the next row."""
    layer = LAYERS["linear"]
    trained = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        base = layer.base(torch.float64)
        trained.append(REPLACED.train(base, tmp_path / str(seed), seed))
    changes = [change_of(one, layer, 3) for one in trained]
    twin = Twin(layer, torch.float64, 3)
    for one in trained:
        twin.add(one.path)

    found = twin.change([(Part(adapter=1, weight=1.0),), (), (Part(adapter=0, weight=1.0),)], way)

    torch.testing.assert_close(found[0], changes[1][0])
    assert not found[1].any()
    torch.testing.assert_close(found[2], changes[0][2])


def test_trap_25_two_replacements_of_a_module_are_no_mix(tmp_path: Path) -> None:
    """Halfway between two heads is neither."""
    base = LAYERS["linear"].base(torch.float64)
    adapted = lokr_core.attach(base)
    adapters = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        path = REPLACED.train(LAYERS["linear"].base(torch.float64), tmp_path / str(seed), seed).path
        adapters.append(lokr_core.read_adapter(path, adapted.spec, f"adapter-{seed}"))
        adapted.add(adapters[-1])

    with pytest.raises(MixError, match=PATH):
        adapted.check(AdapterMix.of({adapters[0]: 0.5, adapters[1]: 0.5}))


@WAYS
def test_trap_25_replaced_head_may_have_its_own_labels(tmp_path: Path, way: ApplyWord) -> None:
    """A classifier's head is as wide as its labels are many; its rows come out with that size."""
    weight, bias = draw(7, 40, seed=1), draw(7, seed=2)
    tensors = {
        f"base_model.model.{PATH}.weight": weight,
        f"base_model.model.{PATH}.bias": bias,
        f"base_model.model.{SIDE}.lora_A.weight": draw(2, 6, seed=3),
        f"base_model.model.{SIDE}.lora_B.weight": draw(6, 2, seed=4),
    }
    folder = _peft(tmp_path, tensors, modules_to_save=["to_out"], target_modules=["side"])
    base = LAYERS["linear"].base(torch.float64)
    adapted = lokr_core.attach(base)
    adapter = lokr_core.read_adapter(folder, adapted.spec, "a")
    adapted.add(adapter)
    x = LAYERS["linear"].inputs(2, torch.float64)

    with torch.no_grad(), adapted.using(AdapterMix.of({adapter: 1.0}), apply=way):
        found = base(x)

    torch.testing.assert_close(found, x @ weight.double().mT + bias.double())
    assert f"{PATH}.weight" not in adapter.delta_weights()
    assert any(PATH in warning for warning in adapter.warnings)


def _peft(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    write(folder, tensors).rename(folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trap_26_biases_of_peft_replace(tmp_path: Path, bias: str) -> None:
    """They are stored as the bias that was trained; added to the base's, they would count twice."""
    trained = train(Peft(algorithm="lora", options={"bias": bias}), "linear", tmp_path)
    stored = load_file(trained.path / "adapter_model.safetensors")

    adapter = read(trained.path, "linear")

    base = LAYERS["linear"].base(torch.float64).get_parameter(f"{PATH}.bias").detach()
    kept = next(t for key, t in stored.items() if PATH in key and key.endswith("bias"))
    torch.testing.assert_close(adapter.delta_weights()[f"{PATH}.bias"], kept.double() - base)
    torch.testing.assert_close(change_by(adapter, "linear"), trained_change(trained, "linear"))


def test_trap_26_biases_of_lycoris_are_added(tmp_path: Path) -> None:
    """diff_b is a difference, though it stands beside the module as PEFT's bias does."""
    trained = train(Lycoris(algorithm="full"), "linear", tmp_path)
    stored = load_file(trained.path)

    adapter = read(trained.path, "linear")

    (kept,) = (tensor for key, tensor in stored.items() if key.endswith("diff_b"))
    torch.testing.assert_close(adapter.delta_weights()[f"{PATH}.bias"], kept.double())
    torch.testing.assert_close(change_by(adapter, "linear"), trained_change(trained, "linear"))


@pytest.mark.parametrize("layer", ["layer norm", "group norm"])
def test_trap_26_norms_of_lycoris_are_added(tmp_path: Path, layer: str) -> None:
    """w_norm and b_norm are differences, and have no scale."""
    trained = train(Lycoris(algorithm="lokr", options={"train_norm": True}), layer, tmp_path)
    stored = load_file(trained.path)

    deltas = read(trained.path, layer).delta_weights()

    for name, leaf in (("weight", "w_norm"), ("bias", "b_norm")):
        (kept,) = (tensor for key, tensor in stored.items() if key.endswith(leaf))
        torch.testing.assert_close(deltas[f"{PATH}.{name}"], kept.double())


def test_trap_26_sparse_bias_has_the_shape_of_the_weight(tmp_path: Path) -> None:
    """LyCORIS's extraction calls a residual of the weight a bias."""
    base = nn.Module()
    base.proj = nn.Linear(12, 8, dtype=torch.float64)
    up, down = draw(8, 2, seed=1), draw(2, 12, seed=2)
    residual = draw(8, 12, seed=3) * (draw(8, 12, seed=4) > 1)
    sparse = residual.to_sparse().coalesce()
    tensors = {
        "lora_unet_proj.lora_up.weight": up,
        "lora_unet_proj.lora_down.weight": down,
        "lora_unet_proj.alpha": torch.tensor([2.0]).half(),
        "lora_unet_proj.bias_indices": sparse.indices().to(torch.int16),
        "lora_unet_proj.bias_values": sparse.values(),
        "lora_unet_proj.bias_size": torch.tensor([8, 12], dtype=torch.int16),
    }

    deltas = read_adapter(write(tmp_path, tensors), discover({"unet": base})).delta_weights()

    wanted = up.double() @ down.double() + residual.double()
    torch.testing.assert_close(deltas, {"unet.proj.weight": wanted})

"""What the trainers' own loaders make of a converted file."""

import logging
from pathlib import Path

import torch
from lycoris import create_lycoris_from_weights
from torch import Tensor

import lokr_core
from lokr_core import Adapter
from tests.tiny import ModelFactory, peft_merged
from tests.tiny.models import in_eval


def changes_of(adapter: Adapter) -> dict[str, Tensor]:
    """Return what we make of an adapter, by parameter."""
    return {name: delta.double() for name, delta in adapter.delta_weights().items()}


def read(make_model: ModelFactory, path: Path) -> Adapter:
    """Return an adapter as we read it."""
    return lokr_core.read_adapter(path, lokr_core.attach(make_model()).spec)


def peft_changes(make_model: ModelFactory, folder: Path) -> dict[str, Tensor]:
    """Return what PEFT makes of a folder, by parameter."""
    base = in_eval(make_model(), torch.float64).state_dict()
    merged = peft_merged(make_model, folder).state_dict()
    changes = {name: merged[name] - base[name] for name in base}
    return {name: change for name, change in changes.items() if bool(change.any())}


@torch.no_grad()
def lycoris_changes(make_model: ModelFactory, path: Path) -> dict[str, Tensor]:
    """Return what the forward of LyCORIS, which reloads a file, makes of it, by parameter."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    model = in_eval(make_model(), torch.float64)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network, _ = create_lycoris_from_weights(1.0, str(path), model)
    for lora in network.loras:
        lora.to(torch.float64)
    network.apply_to()
    changes = {}
    for lora in network.loras:
        linear = lora.org_module[0]
        units = torch.eye(linear.in_features, dtype=torch.float64)
        weight = (linear(units) - linear(torch.zeros_like(units))).mT
        name = next(name for name, module in model.named_modules() if module is linear)
        changes[f"{name}.weight"] = weight - base[f"{name}.weight"]
    return changes


def assert_same_changes(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Check that two sets of changes are equal, each relative to its own size."""
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        torch.testing.assert_close(
            found[name], change, rtol=0, atol=1e-12 + 1e-9 * float(change.abs().max())
        )

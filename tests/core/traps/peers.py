"""The trainers, asked for the change that they make of one layer."""

from pathlib import Path

import torch
from torch import Tensor

from lokr_core.adapter import Adapter
from lokr_core.formats import read_adapter
from lokr_core.layers.discover import discover
from tests.parity.compare import change_of
from tests.parity.layers import LAYERS, PATH
from tests.parity.lycoris_peer import Lycoris
from tests.parity.peft_peer import Peft
from tests.parity.trained import Trained

NUM_ROWS = 4


def train(trainer: Lycoris | Peft, layer: str, folder: Path) -> Trained:
    """Train an adapter of one kind of layer."""
    return trainer.train(LAYERS[layer].base(torch.float64), folder, seed=1)


def trained_change(trained: Trained, layer: str) -> Tensor:
    """Return what the trainer's own forward adds to the answers of the base."""
    return change_of(trained, LAYERS[layer], NUM_ROWS)


def read(path: Path, layer: str) -> Adapter:
    """Read an adapter of one kind of layer, in float64."""
    return read_adapter(path, discover(LAYERS[layer].base(torch.float64)), "adapter")


@torch.no_grad()
def change_by(adapter: Adapter, layer: str) -> Tensor:
    """Return what the base's answers change by when the adapter's deltas are added to it."""
    base, changed = (LAYERS[layer].base(torch.float64) for _ in range(2))
    for name, delta in adapter.delta_weights().items():
        changed.get_parameter(name).add_(delta)
    x = LAYERS[layer].inputs(NUM_ROWS, torch.float64)
    change = changed(x) - base(x)
    assert isinstance(change, Tensor)
    return change


def delta_of(adapter: Adapter) -> Tensor:
    """Return the delta of the layer's weight."""
    return adapter.delta_weights()[f"{PATH}.weight"]

"""Modules that take other inputs than their kind does, or take them by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import Mamba2Config, Mamba2Model, OPTConfig, OPTForCausalLM

import lokr_core
from lokr_core import AdapterMix
from lokr_core.errors import UnsupportedModuleError
from lokr_core.layers.discover import discover
from tests.core.formats.hand_made import write
from tests.parity.layers import LAYERS
from tests.tiny.models import in_eval

POSITIONS = "model.decoder.embed_positions"


def _opt() -> OPTForCausalLM:
    """Return a model whose table of positions takes masks and offsets."""
    config = OPTConfig(
        vocab_size=20,
        hidden_size=8,
        word_embed_proj_dim=8,
        ffn_dim=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return in_eval(OPTForCausalLM(config), torch.float64)


@torch.no_grad()
def test_model_with_a_table_of_positions_runs() -> None:
    """Its table takes more than ids; no adapter is routed there, so it is left as it is."""
    model, ids = _opt(), torch.tensor([[3, 4, 5]])
    wanted = model(ids).logits
    adapted = lokr_core.attach(model)

    with adapted.using(AdapterMix()):
        found = model(ids).logits

    assert torch.equal(found, wanted)


def test_adapter_of_a_table_of_positions_is_refused(tmp_path: Path) -> None:
    """Which rows it has cannot be told from what it is given."""
    table = discover(_opt()).modules[POSITIONS]
    tensors = {f"lycoris_{POSITIONS.replace('.', '_')}.diff": torch.ones(table.shape)}

    with pytest.raises(UnsupportedModuleError, match=f"{POSITIONS}.*more than the one input"):
        lokr_core.read_adapter(write(tmp_path, tensors), discover(_opt()))


@pytest.mark.parametrize(
    "normalise", [parametrizations.weight_norm, parametrizations.spectral_norm]
)
def test_weight_that_is_computed_is_refused(
    tmp_path: Path, normalise: Callable[[nn.Module], nn.Module]
) -> None:
    """A merged weight would be passed over, as the module computes its own at every call."""
    base = nn.ModuleDict({"conv": normalise(nn.Conv1d(4, 6, 3)), "other": nn.Linear(2, 2)})
    tensors = {"lycoris_conv.diff": torch.ones(6, 4, 3)}

    with pytest.raises(UnsupportedModuleError, match=r"conv.*computed from other parameters"):
        lokr_core.read_adapter(write(tmp_path, tensors), discover(base))


def test_convolution_of_a_state_space_layer_is_refused(tmp_path: Path) -> None:
    """Its layer reads the weight itself, so that a routed forward would never run."""
    config = Mamba2Config(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_heads=2, head_dim=8, n_groups=1
    )
    spec = discover(Mamba2Model(config))
    (path,) = (path for path in spec.modules if path.endswith("conv1d"))
    tensors = {f"{path}.diff": torch.ones(spec.modules[path].parameter.shape)}

    with pytest.raises(UnsupportedModuleError, match=r"conv1d.*without calling it"):
        lokr_core.read_adapter(write(tmp_path, tensors), spec)


class _ByName(nn.Module):
    """Calls its layer with the name that torch gives the input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.block = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        output = self.block(input=x)
        assert isinstance(output, Tensor)
        return output


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding", "layer norm"])
@torch.no_grad()
def test_input_may_be_given_by_name(name: str) -> None:
    """Callers may, and a module that is attached must not tell."""
    layer = LAYERS[name]
    base = layer.base(torch.float64)
    model = nn.ModuleDict({"caller": _ByName(base.layer), "other": base})
    x = layer.inputs(2, torch.float64)
    wanted = base(x)
    lokr_core.attach(model)

    assert torch.equal(model["caller"](x), wanted)

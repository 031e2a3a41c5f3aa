"""Adapters trained by LyCORIS, and what its forward makes of the base.

Its forward, not its merge: the merge multiplies by the scale twice for LoKr and LoHa.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lycoris import LycorisNetwork
from torch import Tensor, nn

from tests.parity.layers import NUM_OUT, PATH, Base, as_linear
from tests.parity.trained import Trained, randomise


@dataclass(frozen=True, slots=True, kw_only=True)
class Lycoris:
    """A way to train with LyCORIS.

    ``options`` are those of LycorisNetwork; ``algorithms`` gives other options to some modules,
    by path, as a preset does.
    """

    algorithm: str
    dim: int = 2
    alpha: float = 3.0
    options: Mapping[str, object] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: {PATH: {}})
    dtype: torch.dtype = torch.float32  # of the file
    metadata: Mapping[str, str] = field(default_factory=dict)

    def train(self, base: nn.Module, folder: Path, seed: int) -> Trained:
        """Draw an adapter of a float64 base, write its file, and apply it to the base.

        LyCORIS takes neither Conv1D nor an embedding; it is given a linear layer of the same
        matrix, of which a file means the same.
        """
        linear = as_linear(base) if isinstance(base, Base) else base
        network = self._network(linear)
        assert len(network.loras) == len(self.modules), [lora.lora_name for lora in network.loras]
        for lora in network.loras:
            randomise(lora.named_parameters(prefix=lora.lora_name), seed, self.dtype)
        network.apply_to()
        network.to(torch.float64)
        path = folder / "adapter.safetensors"
        network.save_weights(str(path), self.dtype, dict(self.metadata))
        is_table = isinstance(base, Base) and isinstance(base.layer, nn.Embedding)
        model = _Table(linear) if is_table else linear
        return Trained(path=path, model=model)

    def reload(self, base: nn.Module, path: Path) -> LycorisNetwork:
        """Return a network of the same settings, with a file's factors, applied to a base."""
        network = self._network(base)
        network.apply_to()
        missing = network.load_weights(str(path))
        assert not missing, missing
        return network.to(torch.float64)

    def _network(self, base: nn.Module) -> LycorisNetwork:
        logging.getLogger("LyCORIS").setLevel(logging.ERROR)
        LycorisNetwork.apply_preset(  # kept in the class: every key is set, so that none stays
            {
                "enable_conv": True,
                "target_module": [],
                "target_name": [path.replace(".", r"\.") + "$" for path in self.modules],
                "module_algo_map": {},
                "name_algo_map": {
                    path: dict(options) for path, options in self.modules.items() if options
                },
                "lora_prefix": "lycoris",
                "use_fnmatch": False,
                "exclude_name": [],
            }
        )
        return LycorisNetwork(
            base,
            lora_dim=self.dim,
            conv_lora_dim=self.dim,
            alpha=self.alpha,
            conv_alpha=self.alpha,
            network_module=self.algorithm,
            warn_on_unmatched=False,
            **self.options,
        )


class _Table(nn.Module):
    """An embedding whose table is the matrix of a linear layer."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self._linear = linear

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of the table."""
        columns: Tensor = self._linear(torch.eye(NUM_OUT, dtype=torch.float64))
        return columns.mT[ids]

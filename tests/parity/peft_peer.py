"""Adapters trained by PEFT, and what it makes of the base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.parity.layers import PATH, Base
from tests.parity.trained import Trained, quiet, randomise

_ALPHAS = {"lokr": "alpha", "loha": "alpha", "lora": "lora_alpha"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peft:
    """A way to train with PEFT; ``options`` are those of the algorithm's configuration."""

    algorithm: str
    r: int = 2
    alpha: float = 3
    options: Mapping[str, object] = field(default_factory=dict)
    targets: Sequence[str] = (PATH,)
    dtype: torch.dtype = torch.float32  # of the file

    def train(self, base: nn.Module, folder: Path, seed: int) -> Trained:
        """Draw an adapter of a float64 base, write its folder, and apply it to the base."""
        fields = {
            "r": self.r,
            _ALPHAS[self.algorithm]: self.alpha,
            "target_modules": list(self.targets),
            **self.options,
        }
        if isinstance(base, Base) and isinstance(base.layer, Conv1D):
            fields["fan_in_fan_out"] = True
        config = peft.get_peft_config({"peft_type": self.algorithm.upper(), **fields})
        with quiet():
            model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        randomise(trained.items(), seed, self.dtype)
        # The card is a text for people, and takes longer than all the rest.
        with quiet(), patch.object(model, "create_or_update_model_card"):
            _stored(model, self.dtype).save_pretrained(str(folder))
        for parameter in trained.values():
            parameter.data = parameter.data.to(torch.float64)
        return Trained(path=folder, model=nn.Module.eval(model))


def _stored(model: peft.PeftModel, dtype: torch.dtype) -> peft.PeftModel:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model

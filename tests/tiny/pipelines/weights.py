"""Weights of tiny modules, large enough that whatever changes them is seen in the images."""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

GAIN = 1.0  # of a layer whose inputs have variance 1
VECTOR_STD = 0.1  # biases, and norms around 1


def drawn(module: Module, seed: int = 0) -> Module:
    """Return the module in evaluation mode, its weights and statistics drawn again.

    The modules' own initial values are zeros in the last layers of denoisers, which would hide
    what adapters do, and in Z-Image whatever lay in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_draw(name, parameter, generator))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                center = 1.0 if name.endswith("running_var") else 0.0
                buffer.copy_(center + VECTOR_STD * torch.randn(buffer.shape, generator=generator))
    return nn.Module.eval(module)


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("gamma") or (parameter.ndim == 1 and name.endswith("weight")):
        return 1.0 + VECTOR_STD * noise  # of a norm
    if parameter.ndim == 1:
        return VECTOR_STD * noise
    return GAIN * noise / math.sqrt(parameter[0].numel())

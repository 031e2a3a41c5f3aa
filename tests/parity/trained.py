"""Trained: what a trainer leaves behind, and how one is run."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

FACTOR = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """An adapter's files, and what the trainer itself makes of the base, in float64."""

    path: Path
    model: nn.Module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the trainers' warnings about their own dependencies out of the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def randomise(
    parameters: Iterable[tuple[str, nn.Parameter]], seed: int, dtype: torch.dtype
) -> None:
    """Draw every parameter, exact in ``dtype`` and large, so that a wrong scale is loud.

    A DoRA magnitude is only stretched, so that it stays near the norm that it started from.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters, key=lambda named: named[0]):
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if "magnitude" in name or "dora_scale" in name:
            drawn = parameter.data * (1 + 0.4 * noise)
        elif parameter.ndim == 0:  # a scalar, which is folded into a factor: let that be exact
            drawn = 2 * noise.sign()
        else:
            drawn = FACTOR * (noise + noise.sign())  # none is near zero, which would be quiet
        parameter.data.copy_(drawn.to(dtype))

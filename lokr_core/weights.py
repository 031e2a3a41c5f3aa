"""Factor types: the compact forms in which adapters are kept, one small class for each.

Every tensor may carry leading batch dimensions, which stand for several adapters side by side.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from lokr_core.errors import ShapeError


def _require_matrix(name: str, tensor: Tensor) -> None:
    if tensor.ndim < 2:
        raise ShapeError(f"{name} must be a matrix, not {tuple(tensor.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullFactor:
    """A factor stored whole."""

    matrix: Tensor  # [..., rows, cols]

    def __post_init__(self) -> None:
        """Check that the factor is a matrix."""
        _require_matrix("a full factor", self.matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrix.shape[-2], self.matrix.shape[-1]

    def dense(self) -> Tensor:
        """Return the factor as one matrix, [rows, cols]."""
        return self.matrix

    def to(self, dtype: torch.dtype) -> "FullFactor":
        """Return the factor in another dtype."""
        return FullFactor(matrix=self.matrix.to(dtype))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankFactor:
    """A factor stored as the product ``a @ b``."""

    a: Tensor  # [..., rows, R]
    b: Tensor  # [..., R, cols]

    def __post_init__(self) -> None:
        """Check that both are matrices and that the inner sizes agree."""
        _require_matrix("factor a", self.a)
        _require_matrix("factor b", self.b)
        if self.a.shape[-1] != self.b.shape[-2]:
            raise ShapeError(f"a is {tuple(self.a.shape)} but b is {tuple(self.b.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.a.shape[-2], self.b.shape[-1]

    def dense(self) -> Tensor:
        """Return the product, [rows, cols]."""
        return self.a @ self.b

    def to(self, dtype: torch.dtype) -> "LowRankFactor":
        """Return the factor in another dtype."""
        return LowRankFactor(a=self.a.to(dtype), b=self.b.to(dtype))


Factor = FullFactor | LowRankFactor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LokrWeights:
    """A delta ``scale * (w1 ⊗ w2)``; a LoRA is the case in which w1 is 1 × 1."""

    w1: Factor  # [O1, I1]
    w2: Factor  # [O2, I2]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input size of the delta, (O1 * O2, I1 * I2)."""
        (o1, i1), (o2, i2) = self.w1.shape, self.w2.shape
        return o1 * o2, i1 * i2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HadamardWeights:
    """A LoHa delta ``scale * (left ⊙ right)`` whose Khatri-Rao form would be larger than itself."""

    left: LowRankFactor  # [O, I]
    right: LowRankFactor  # [O, I]
    scale: float

    def __post_init__(self) -> None:
        """Check that both sides have one shape."""
        if self.left.shape != self.right.shape:
            raise ShapeError(f"left is {self.left.shape} but right is {self.right.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input size of the delta."""
        return self.left.shape


DeltaWeights = LokrWeights | HadamardWeights


class GainAxis(Enum):
    """The side of a weight that a DoRA magnitude belongs to."""

    OUTPUT = "output"
    INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gain:
    """DoRA's ``magnitude / norm(W + delta)``, one value for each output or input."""

    values: Tensor  # [O] or [I], float32 or float64
    axis: GainAxis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleWeights:
    """What one adapter does to one linear module: ``W' = gain * (W + delta)``."""

    delta: DeltaWeights
    gain: Gain | None = None

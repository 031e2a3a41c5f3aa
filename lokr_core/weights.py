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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuckerFactor:
    """The factor of a convolution stored as a core and two sides (Tucker, as LyCORIS has it)."""

    core: Tensor  # [..., R1, R2, K]
    a: Tensor  # [..., R1, rows]
    b: Tensor  # [..., R2, cols]

    def __post_init__(self) -> None:
        """Check that the sides fit the core."""
        if self.core.ndim < 3:
            raise ShapeError(f"a Tucker core must be [R1, R2, K], not {tuple(self.core.shape)}")
        for name, tensor in (("a", self.a), ("b", self.b)):
            _require_matrix(f"side {name}", tensor)
        if (self.a.shape[-2], self.b.shape[-2]) != tuple(self.core.shape[-3:-1]):
            raise ShapeError(
                f"the core is {tuple(self.core.shape)}, but its sides are {tuple(self.a.shape)} "
                f"and {tuple(self.b.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the factor as a matrix, whose columns are (cols, K)."""
        return self.a.shape[-1], self.b.shape[-1] * self.core.shape[-1]

    def dense(self) -> Tensor:
        """Return the factor as one matrix, [rows, cols * K]."""
        product = torch.einsum("...ijk,...ip,...jr->...prk", self.core, self.a, self.b)
        return product.flatten(-2)

    def to(self, dtype: torch.dtype) -> "TuckerFactor":
        """Return the factor in another dtype."""
        return TuckerFactor(core=self.core.to(dtype), a=self.a.to(dtype), b=self.b.to(dtype))


Factor = FullFactor | LowRankFactor | TuckerFactor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LokrWeights:
    """A delta ``scale * (w1 ⊗ w2)``; a LoRA is the case in which w1 is 1 × 1.

    The weight of a convolution is taken as a matrix whose columns are (inputs, *kernel); the
    kernel's share of them is w2's.
    """

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

    left: LowRankFactor | TuckerFactor  # [O, I]
    right: LowRankFactor | TuckerFactor  # [O, I]
    scale: float

    def __post_init__(self) -> None:
        """Check that both sides have one shape."""
        if self.left.shape != self.right.shape:
            raise ShapeError(f"left is {self.left.shape} but right is {self.right.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input size of the delta."""
        return self.left.shape


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseWeights:
    """A delta ``scale * matrix`` that has no factors."""

    matrix: Tensor  # [..., O, I]
    scale: float

    def __post_init__(self) -> None:
        """Check that the delta is a matrix."""
        _require_matrix("a dense delta", self.matrix)

    @property
    def shape(self) -> tuple[int, int]:
        """Output and input size of the delta."""
        return self.matrix.shape[-2], self.matrix.shape[-1]


DeltaWeights = LokrWeights | HadamardWeights | DenseWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive outputs, from ``start`` up to but without ``stop``."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of outputs."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """A delta, or some of its outputs, added to a module's outputs from ``at``."""

    delta: DeltaWeights
    rows: Rows | None = None  # of the delta's outputs; all of them if None
    at: int = 0

    @property
    def outputs(self) -> Rows:
        """The module's outputs that the term changes."""
        count = self.delta.shape[0] if self.rows is None else len(self.rows)
        return Rows(start=self.at, stop=self.at + count)


class GainAxis(Enum):
    """The side of a weight that a DoRA magnitude belongs to."""

    OUTPUT = "output"
    INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gain:
    """DoRA's ``magnitude / norm(W + delta)``, one value for each output or input channel."""

    values: Tensor  # [O] or [I], float32 or float64
    axis: GainAxis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replacement:
    """Parameters that take the place of the base's; what is None stays the base's."""

    weight: Tensor | None = None  # [O', C]; O' may differ from the base's O
    bias: Tensor | None = None  # [O']


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModuleWeights:
    """What one adapter does to one module: ``W' = gain * (W + Σ terms)``, ``b' = b + bias``.

    A replaced parameter takes the place of the base's and has no terms beside it.
    """

    terms: tuple[Term, ...] = ()
    gain: Gain | None = None
    vector: Tensor | None = None  # added to the weight of a norm, [C]
    bias: Tensor | None = None  # added to the bias, [O]
    replacement: Replacement | None = None

    @property
    def is_sum_of_terms(self) -> bool:
        """Whether W' − W is the sum of the terms and nothing else, whatever W is."""
        return self.gain is None and self.vector is None and self.replacement is None

    @classmethod
    def of(cls, delta: DeltaWeights, gain: Gain | None = None) -> "ModuleWeights":
        """Return the weights of a module that one delta changes."""
        return cls(terms=(Term(delta=delta),), gain=gain)

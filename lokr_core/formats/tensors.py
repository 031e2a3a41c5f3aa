"""Checks of single tensors of a file, and the shape that they must come to."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lokr_core.errors import AdapterMismatchError, AdapterTensorError, UnsupportedModuleError
from lokr_core.formats.binding import FileModule, NamedTensor
from lokr_core.formats.names import PEFT_WRAPPER
from lokr_core.spec import ModuleKind

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """The weight that a module of a file is for, as a matrix [out_features, columns]."""

    name: str
    kind: ModuleKind
    out_features: int
    columns: int
    kernel: tuple[int, ...]

    @classmethod
    def of(cls, module: FileModule) -> "WeightShape":
        """Return what the targets of a module come to.

        Raises:
            UnsupportedModuleError: A target cannot carry an adapter, or the targets differ in kind.
        """
        specs = [target.spec for target in module.targets]
        first = specs[0]
        for spec in specs:
            if spec.refusal is not None:
                raise UnsupportedModuleError(spec.path, spec.refusal)
            if (spec.kind, spec.shape[1]) != (first.kind, first.shape[1]):
                problem = f"the file has it and {first.path!r} in one, but they differ in inputs"
                raise UnsupportedModuleError(spec.path, problem)
        return cls(
            name=first.path if module.is_whole else trained_path(module),
            kind=first.kind,
            out_features=module.out_features,
            columns=first.shape[1],
            kernel=first.kernel,
        )

    @property
    def in_features(self) -> int:
        """Input channels, of one group in a convolution."""
        return self.columns // math.prod(self.kernel)

    def check(self, found: tuple[int, int]) -> None:
        """Check the shape that factors multiply out to.

        Raises:
            AdapterMismatchError: It is not that of the base weight.
        """
        if found != (self.out_features, self.columns):
            expected = (self.out_features, self.columns)
            raise AdapterMismatchError(self.name, found=found, expected=expected)


def trained_path(module: FileModule) -> str:
    """Return the path that a module of a file had where it was trained."""
    return module.name.removeprefix(PEFT_WRAPPER)


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and nothing infinite, in one pass without copies."""
    low, high = tensor.aminmax()  # NaN wins over any number
    return math.isfinite(low.item()) and math.isfinite(high.item())


def checked(entry: NamedTensor) -> Tensor:
    """Return a tensor that numbers may be taken from.

    Raises:
        AdapterTensorError: It is not floating point, empty, or not finite.
    """
    tensor = entry.value
    if tensor.dtype not in DTYPES:
        raise AdapterTensorError(entry.key, f"is {tensor.dtype}, which no factor may be")
    if tensor.numel() == 0:
        raise AdapterTensorError(entry.key, f"is empty: {tuple(tensor.shape)}")
    if not is_finite(tensor):
        raise AdapterTensorError(entry.key, "holds NaN or infinite values")
    return tensor


def matrix(entry: NamedTensor, kernel: tuple[int, ...] = ()) -> Tensor:
    """Return a tensor as a matrix, whose columns hold the kernel if there is one.

    Args:
        entry: [rows, cols], or [rows, cols, *kernel]; ones at the end of a kernel do not count.
        kernel: The kernel that the tensor has unless its columns hold it already.

    Raises:
        AdapterTensorError: It is no such tensor.
    """
    tensor = checked(entry)
    if tensor.ndim < 2:
        raise AdapterTensorError(entry.key, f"is {_shape(tensor)}, but a matrix is needed here")
    if tensor.ndim > 2 and _kernel(tensor.shape[2:]) != _kernel(kernel):
        wanted = f"the module's kernel is {kernel}" if kernel else "no kernel belongs here"
        raise AdapterTensorError(entry.key, f"is {_shape(tensor)}, but {wanted}")
    return tensor.flatten(1)


def core(entry: NamedTensor, kernel: tuple[int, ...]) -> Tensor:
    """Return a Tucker core as [R1, R2, K].

    Raises:
        AdapterTensorError: It is not [R1, R2, *kernel].
    """
    tensor = checked(entry)
    if not kernel:
        problem = "is a Tucker core, which only convolutions have"
        raise AdapterTensorError(entry.key, problem)
    if tensor.ndim < 3 or _kernel(tensor.shape[2:]) != _kernel(kernel):
        problem = f"is {_shape(tensor)}, but the module's kernel is {kernel}"
        raise AdapterTensorError(entry.key, problem)
    return tensor.flatten(2)


def vector(entry: NamedTensor, size: int) -> Tensor:
    """Return a tensor that has one number for each output.

    Raises:
        AdapterTensorError: It is no vector of this size.
    """
    tensor = checked(entry)
    if tuple(tensor.shape) != (size,):
        problem = f"is {_shape(tensor)}, but its module has {size} outputs"
        raise AdapterTensorError(entry.key, problem)
    return tensor


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _kernel(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return a kernel without the ones at its end: PEFT gives a Conv1d's core one more."""
    end = len(sizes)
    while end and sizes[end - 1] == 1:
        end -= 1
    return tuple(sizes[:end])

"""ConvGeometry: how a convolution walks over its input, apart from its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn
from torch.nn import functional

from lokr_core.ops.contraction import Taps

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvGeometry:
    """Kernel, stride, dilation, groups and padding, each with one number for each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[tuple[int, int], ...]  # before and after, for each axis
    padding_mode: str  # "zeros", or a mode of functional.pad

    @classmethod
    def of(cls, conv: Conv) -> "ConvGeometry":
        """Return the geometry of a module."""
        return cls(
            kernel=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            padding=_padding(conv),
            padding_mode=conv.padding_mode,
        )

    @property
    def taps(self) -> Taps:
        """What counting operations needs to know."""
        return Taps(
            num_taps=prod(self.kernel), num_positions=prod(self.stride), num_groups=self.groups
        )

    @property
    def is_pointwise(self) -> bool:
        """Whether each output position sees the one input position of its own place."""
        has_border = any(amount for pair in self.padding for amount in pair)
        return set(self.kernel) | set(self.stride) == {1} and not has_border

    def padded(self, x: Tensor) -> Tensor:
        """Return x [N, C, *S] with its borders."""
        amounts = [amount for pair in reversed(self.padding) for amount in pair]
        if not any(amounts):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return functional.pad(x, amounts, mode=mode)

    def conv(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """Return the convolution of x [N, C, *S] with a weight [O, C / groups, *kernel]."""
        padding: Sequence[int] = [before for before, _ in self.padding]
        is_even = all(before == after for before, after in self.padding)
        if not is_even or self.padding_mode != "zeros":
            x, padding = self.padded(x), [0] * len(self.kernel)
        stride, dilation = self.stride, self.dilation
        match len(self.kernel):
            case 1:
                return functional.conv1d(x, weight, None, stride, padding, dilation, groups)
            case 2:
                return functional.conv2d(x, weight, None, stride, padding, dilation, groups)
            case _:
                return functional.conv3d(x, weight, None, stride, padding, dilation, groups)


def _padding(conv: Conv) -> tuple[tuple[int, int], ...]:
    """Return the border before and after each axis."""
    if not isinstance(conv.padding, str):
        return tuple((amount, amount) for amount in conv.padding)
    if conv.padding == "valid":
        return tuple((0, 0) for _ in conv.kernel_size)
    totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)  # "same"

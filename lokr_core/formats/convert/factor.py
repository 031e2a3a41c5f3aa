"""PEFT's LoKr factor shapes, which it derives from its configuration and not from the tensors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.modules import SourceModule
from lokr_core.formats.convert.scale import Leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class KroneckerShape:
    """The sizes of a module's two factors, and the ranks of those that are low-rank."""

    path: str
    o1: int
    i1: int
    o2: int
    i2: int
    w1_rank: int | None
    w2_rank: int | None
    core: bool | None  # whether w2 has a Tucker core; None where it could have none

    @classmethod
    def of(cls, module: SourceModule) -> "KroneckerShape":
        """Return the shape of a LoKr module."""
        leaves, window = module.leaves, math.prod(module.spec.kernel)
        o1, i1, w1_rank = _sizes(leaves, "lokr_w1", window=1)
        o2, i2, w2_rank = _sizes(leaves, "lokr_w2", window)
        can_have_core = w2_rank is not None and window > 1
        return cls(
            path=module.path,
            o1=o1,
            i1=i1,
            o2=o2,
            i2=i2,
            w1_rank=w1_rank,
            w2_rank=w2_rank,
            core="lokr_t2" in leaves if can_have_core else None,
        )

    def rank(self, *, decomposes_both: bool, default: int) -> int:
        """Return the r for which PEFT makes factors of these forms.

        Raises:
            ConversionError: There is none.
        """
        given = {rank for rank in (self.w1_rank, self.w2_rank) if rank is not None}
        w1_limit = -(-max(self.o1, self.i1) // 2)  # from here on PEFT makes w1 full
        w2_limit = -(-max(self.o2, self.i2) // 2)
        least = max(w2_limit, w1_limit if decomposes_both else 1)
        r = min(given) if given else max(default, least)
        w1_is_full = not (decomposes_both and r < w1_limit)
        w2_is_full = r >= w2_limit
        forms = (self.w1_rank is None, self.w2_rank is None)
        if len(given) > 1 or (w1_is_full, w2_is_full) != forms:
            raise ConversionError(
                self.path, f"PEFT would make factors of other forms at rank {sorted(given) or r}"
            )
        return r


def _sizes(leaves: Leaves, name: str, window: int) -> tuple[int, int, int | None]:
    """Return rows, input channels and rank of a factor, for a window of that many places."""
    if name in leaves:
        rows, channels = leaves[name].shape[:2]
        return rows, channels, None
    a, b = leaves[f"{name}_a"], leaves[f"{name}_b"]
    if name == "lokr_w2" and "lokr_t2" in leaves:
        return a.shape[1], b.shape[1], b.shape[0]
    return a.shape[0], b.shape[1] // window, b.shape[0]


def decompose_factor(shapes: Sequence[KroneckerShape]) -> int:
    """Return the decompose_factor for which PEFT makes factors of these shapes.

    Raises:
        ConversionError: There is none for all of them; names a module that it fails for.
    """
    sizes: dict[tuple[int, int], str] = {(s.o1 * s.o2, s.o1): s.path for s in shapes}
    sizes |= {(s.i1 * s.i2, s.i1): s.path for s in shapes}
    first = max(part for _, part in sizes)
    misfit = shapes[0].path
    candidates: list[int] = [-1, *range(first, max(whole for whole, _ in sizes) + 1)]
    for factor in candidates:
        wrong = _misfit(sizes.items(), factor)
        if wrong is None:
            return factor
        misfit = wrong if factor in (-1, first) else misfit
    raise ConversionError(
        misfit, "no decompose_factor gives its factors and those of all other modules in PEFT"
    )


def _misfit(sizes: Iterable[tuple[tuple[int, int], str]], factor: int) -> str | None:
    """Return a module whose factors PEFT would make in other shapes, or None."""
    return next(
        (path for (whole, part), path in sizes if factorization(whole, factor) != part), None
    )


def factorization(whole: int, factor: int) -> int:
    """Return the first of the two parts into which PEFT takes a size apart."""
    if factor > 0 and whole % factor == 0:
        return factor
    limit = whole if factor == -1 else factor
    parts = (part for part in range(1, math.isqrt(whole) + 1) if whole % part == 0)
    return max(part for part in parts if part <= limit)

"""AdapterRef and AdapterMix: which adapters a row carries, and with which weights."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from lokr_core.errors import MixError
from lokr_core.given import finite_number

DEFAULT_MAX_PARTS = 8
MAX_ADAPTER_ID_LENGTH = 128
ADAPTER_ID_RULE = (
    f"1 to {MAX_ADAPTER_ID_LENGTH} letters, digits and . _ - /, each segment starting with a "
    "letter or digit"
)
_SEGMENT = "[A-Za-z0-9][A-Za-z0-9._-]*"
_ADAPTER_ID = re.compile(f"{_SEGMENT}(?:/{_SEGMENT})*")


def is_adapter_id(text: str) -> bool:
    """Return whether ``text`` may be an adapter's id; never a path out of a store."""
    return len(text) <= MAX_ADAPTER_ID_LENGTH and _ADAPTER_ID.fullmatch(text) is not None


def check_adapter_id(adapter_id: str) -> str:
    """Return an adapter's id if it is well formed.

    Raises:
        MixError: It is empty, too long, or has other characters than an id may have.
    """
    if not is_adapter_id(adapter_id):
        raise MixError("adapter_id", f"{adapter_id!r} is no adapter id: {ADAPTER_ID_RULE}")
    return adapter_id


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AdapterRef:
    """One version of one adapter.

    ``version`` is the first 16 hex digits of a SHA-256 over the files' bytes and the overrides,
    so that a cache keyed by a ref can never serve old weights.
    """

    adapter_id: str
    version: str


class HasRef(Protocol):
    """Anything that stands for one adapter version, such as an Adapter."""

    @property
    def ref(self) -> AdapterRef:
        """The adapter version."""


# A mapping's key type is invariant, so a mapping from Adapter is none from "Adapter or AdapterRef".
Key = TypeVar("Key", bound=AdapterRef | HasRef)
OtherKey = TypeVar("OtherKey", bound=AdapterRef | HasRef)


def _shortest(weight: float) -> str:
    """Return the shortest positional decimal of a float64, without an exponent."""
    text = format(Decimal(repr(weight)), "f")
    return text.removesuffix(".0")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class MixPart:
    """One adapter of a mix, its weight, and weights for the modules that a pattern matches."""

    ref: AdapterRef
    weight: float
    module_weights: tuple[tuple[str, float], ...] = ()  # sorted by pattern

    def __post_init__(self) -> None:
        """Check that every weight is a finite number; sort patterns, and write -0.0 as 0.0."""
        patterns = sorted((pattern, self._finite(pattern, w)) for pattern, w in self.module_weights)
        object.__setattr__(self, "weight", self._finite("weight", self.weight))
        object.__setattr__(self, "module_weights", tuple(patterns))

    def _finite(self, field: str, value: object) -> float:
        try:
            return finite_number(value)
        except ValueError as error:
            raise MixError(f"{self.ref.adapter_id}.{field}", str(error)) from error

    @property
    def name(self) -> str:
        """The part of the mix's canonical name that this adapter contributes."""
        name = self.ref.adapter_id
        if self.weight != 1:
            name += f"*{_shortest(self.weight)}"
        if self.module_weights:
            text = ";".join(f"{pattern}={_shortest(w)}" for pattern, w in self.module_weights)
            name += f"@{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return name


def module_weight(part: MixPart, path: str) -> float:
    """Return the weight of a part on one module: a pattern's where one matches, else its own."""
    for pattern, weight in part.module_weights:
        if fnmatchcase(path, pattern):
            return weight
    return part.weight


@dataclass(frozen=True, slots=True)
class AdapterMix:
    """An immutable set of weighted adapters in canonical order; empty is the base model.

    Equal mixes compare and hash equal whatever the order in which their parts were given, so a
    mix serves as the key of batches, of merged weights and of cached prefixes.
    """

    parts: tuple[MixPart, ...] = ()

    def __post_init__(self) -> None:
        """Sort the parts, drop those that do nothing, and refuse an adapter named twice."""
        ids = [part.ref.adapter_id for part in self.parts]
        for adapter_id in ids:
            if ids.count(adapter_id) > 1:
                raise MixError(adapter_id, "the adapter is named twice in one mix")
        kept = (part for part in self.parts if part.weight != 0 or part.module_weights)
        object.__setattr__(self, "parts", tuple(sorted(kept)))

    @classmethod
    def of(
        cls,
        weights: Mapping[Key, float],
        module_weights: Mapping[OtherKey, Mapping[str, float]] | None = None,
        *,
        max_parts: int = DEFAULT_MAX_PARTS,
    ) -> "AdapterMix":
        """Return the mix of these adapters.

        Args:
            weights: Weight of each adapter, by Adapter or AdapterRef.
            module_weights: For some of them, weights that replace the adapter's own where a
                case-sensitive glob over the module path matches.
            max_parts: The most parts a mix may have.

        Raises:
            MixError: A weight is no finite number, an adapter is named twice, module weights name
                an adapter that is not in the mix, or there are too many parts.
        """
        patterns: dict[AdapterRef, Mapping[str, float]] = {}
        for key, by_pattern in (module_weights or {}).items():
            if patterns.setdefault(_ref(key), by_pattern) is not by_pattern:
                raise MixError(_ref(key).adapter_id, "has module weights twice")
        refs = [_ref(key) for key in weights]
        for ref in patterns:
            if ref not in refs:
                raise MixError(ref.adapter_id, "has module weights but is not in the mix")
        if len(refs) > max_parts:
            raise MixError("adapters", f"{len(refs)} parts are more than the limit of {max_parts}")
        return cls(
            tuple(
                MixPart(
                    ref=ref,
                    weight=weight,
                    module_weights=tuple(patterns.get(ref, {}).items()),
                )
                for ref, weight in zip(refs, weights.values(), strict=True)
            )
        )

    @property
    def is_base(self) -> bool:
        """Whether this is the base model, with no adapter at all."""
        return not self.parts

    @property
    def name(self) -> str:
        """The canonical name: parts sorted by id and joined by ``+``; empty for the base model."""
        return "+".join(part.name for part in self.parts)


def _ref(key: AdapterRef | HasRef) -> AdapterRef:
    return key if isinstance(key, AdapterRef) else key.ref


class Apply(Enum):
    """The two ways to apply a mix."""

    UNMERGED = "unmerged"  # base output plus factored deltas
    MERGED = "merged"  # one product with base plus delta, from the merge cache

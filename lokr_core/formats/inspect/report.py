"""AdapterReport: what can be said of an adapter's file, and of its fit to a base model."""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_LISTED = 50  # problems, and names of a kind, in one report


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Names, of which only the first are kept."""

    count: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, names: list[str]) -> "Listing":
        """Return the listing of these names."""
        return cls(count=len(names), first=tuple(names[:MAX_LISTED]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What a file is, before its tensors are understood."""

    path: str
    digest: str  # hex SHA-256 of the tensor file
    num_tensors: int
    num_parameters: int
    num_bytes: int  # of the tensors
    dtypes: Mapping[str, int]  # tensors of each
    trainer: Mapping[str, str]  # of what the trainer wrote, what tells how it was trained


@dataclass(frozen=True, slots=True, kw_only=True)
class FormCount:
    """Modules whose factors have one form."""

    algorithm: str
    rank: int | None
    shapes: Mapping[str, tuple[int, ...]]  # by leaf, such as lokr_w1
    num_modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleCount:
    """Modules that have one scale, from one source."""

    scale: float
    source: str
    num_modules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the modules of a file hold."""

    format: str
    num_modules: int
    algorithms: Mapping[str, int]  # modules of each
    forms: tuple[FormCount, ...]
    scales: tuple[ScaleCount, ...]
    dora: Mapping[str, int]  # modules of each axis
    replacements: Listing
    biases: Listing
    norms: Listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why an adapter would not be served."""

    message: str
    module: str | None = None
    tensor: str | None = None
    found: tuple[int, ...] | None = None  # shape of the delta, where it does not fit
    expected: tuple[int, ...] | None = None  # shape of the base weight
    num_alike: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Modules of the base that an adapter leaves as they are."""

    kind: str
    num_modules: int
    num_in_base: int
    names: Mapping[str, int]  # modules of each name, whose numbers are written as *


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What of a base model an adapter is for."""

    num_bound: int  # modules of the base that the file has tensors for
    unchanged: tuple[Unchanged, ...]
    unmatched: Listing  # keys of the file that no module of the base takes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """All that is said of one adapter."""

    adapter_id: str
    version: str | None  # None if it cannot be read whole
    file: FileFacts | None  # None if it is no file that can be read
    contents: Contents | None
    fit: Fit | None  # None without a base model
    warnings: tuple[str, ...]
    problems: tuple[Problem, ...]
    num_problems: int

    @property
    def is_served(self) -> bool:
        """Whether the adapter would be served, as far as can be told."""
        return self.num_problems == 0

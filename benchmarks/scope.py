"""Scope: how much is measured, and where files may lie meanwhile."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import MODEL_TINY, ModelSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What every benchmark is given."""

    num_pairs: int
    folder: Path  # empty, and gone afterwards
    is_small: bool = False  # tiny sizes, to see that everything runs

    def size(self, full: ModelSize) -> ModelSize:
        """Return a model's size."""
        return MODEL_TINY if self.is_small else full

    def count(self, full: int, small: int) -> int:
        """Return how many of something there are to be."""
        return small if self.is_small else full

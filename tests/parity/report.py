"""Tally: how many answers were compared, and how far off they were, by algorithm and layer."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from tests.parity.compare import Error


@dataclass(slots=True)
class Cell:
    """One algorithm on one kind of layer."""

    num_cases: int = 0
    num_answers: int = 0
    worst: dict[str, float] = field(default_factory=dict)  # by dtype

    def count(self, worst: Mapping[str, float], num_answers: int) -> None:
        """Count one case."""
        self.num_cases += 1
        self.num_answers += num_answers
        for dtype, relative in worst.items():
            self.worst[dtype] = max(relative, self.worst.get(dtype, 0.0))

    def add(self, other: "Cell") -> None:
        """Count all of another cell."""
        self.num_cases += other.num_cases - 1
        self.count(other.worst, other.num_answers)


def worst_of(errors: Iterable[Error]) -> dict[str, float]:
    """Return the largest error of each dtype."""
    worst: dict[str, float] = {}
    for error in errors:
        name = str(error.dtype).removeprefix("torch.")
        worst[name] = max(error.relative, worst.get(name, 0.0))
    return worst


@dataclass(slots=True)
class Tally:
    """All cells, by algorithm and layer."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def count(
        self, algorithm: str, layer: str, worst: Mapping[str, float], num_answers: int
    ) -> None:
        """Count one case."""
        self.cells.setdefault((algorithm, layer), Cell()).count(worst, num_answers)

    @property
    def total(self) -> Cell:
        """Everything together."""
        total = Cell()
        for cell in self.cells.values():
            total.add(cell)
        return total

    def lines(self) -> Iterator[str]:
        """Yield a table, and a last line for everything together."""
        yield _line("algorithm", "layer", "cases", "answers", "float64", "float32")
        for (algorithm, layer), cell in sorted(self.cells.items()):
            yield _cell_line(algorithm, layer, cell)
        yield _cell_line("all", f"{len(self.cells)} pairs", self.total)


def _cell_line(algorithm: str, layer: str, cell: Cell) -> str:
    worst = [f"{cell.worst[name]:.1e}" if name in cell.worst else "" for name in _DTYPES]
    return _line(algorithm, layer, str(cell.num_cases), str(cell.num_answers), *worst)


_DTYPES = [str(dtype).removeprefix("torch.") for dtype in (torch.float64, torch.float32)]


def _line(*columns: str) -> str:
    first, second, *rest = columns
    return f"{first:24}{second:26}" + "".join(f"{column:>10}" for column in rest)

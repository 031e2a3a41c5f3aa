"""What this project makes of adapters, held against what their trainers make of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import lokr_core
from lokr_core import AdapterMix
from lokr_core.adapted import ApplyWord
from lokr_core.adapter import Adapter
from tests.parity.layers import Base, Layer
from tests.parity.matrix import Case
from tests.parity.trained import Trained

WAYS: tuple[ApplyWord, ...] = ("unmerged", "merged")
WEIGHTS = (1.0, 0.5, -1.0)
DTYPES = (torch.float64, torch.float32)
LOUD = 0.02  # the least that a change may be of the base's answer, and the base's of a change
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the norm of the change


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """How far one answer is from the trainer's."""

    what: str
    dtype: torch.dtype
    relative: float  # to the norm of the change

    @property
    def is_small(self) -> bool:
        """Whether it is rounding and nothing else."""
        return self.relative <= TOLERANCES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An adapter and its weight in the mix of a row; adapters are counted from 0."""

    adapter: int
    weight: float


Row = tuple[Part, ...]


@torch.no_grad()
def change_of(trained: Trained, layer: Layer, num_rows: int) -> Tensor:
    """Return what the trainer's own forward adds to the base's, for each row, in float64."""
    x = layer.inputs(num_rows, torch.float64)
    plain: Tensor = layer.base(torch.float64)(x)
    change: Tensor = trained.model(x) - plain
    assert LOUD * plain.norm() < change.norm() < plain.norm() / LOUD
    return change


class Twin:
    """A base of the same values in one dtype, to which this project applies adapters."""

    def __init__(self, layer: Layer, dtype: torch.dtype, num_rows: int) -> None:
        self._layer, self.dtype = layer, dtype
        self._inputs = layer.inputs(num_rows, dtype)
        model = layer.base(dtype)
        with torch.no_grad():
            self.plain: Tensor = model(self._inputs)
        self._model = model
        self._adapted = lokr_core.attach(model)
        self.adapters: list[Adapter] = []

    def add(self, path: Path) -> Adapter:
        """Read an adapter and make it usable."""
        adapter = lokr_core.read_adapter(path, self._adapted.spec, f"adapter-{len(self.adapters)}")
        self._adapted.add(adapter)
        self.adapters.append(adapter)
        return adapter

    @torch.no_grad()
    def change(self, rows: Sequence[Row], way: ApplyWord) -> Tensor:
        """Return what the mixes add to the base's answer: one mix for each row, or one for all."""
        mixes = [
            AdapterMix.of({self.adapters[part.adapter]: part.weight for part in row})
            for row in rows
        ]
        with self._adapted.using(mixes[0] if len(mixes) == 1 else mixes, apply=way):
            return self._change_of(self._model)

    @torch.no_grad()
    def change_by_delta_weights(self, adapter: Adapter) -> Tensor:
        """Return what the base's answer changes by when its parameters do."""
        model: Base = self._layer.base(self.dtype)
        for name, delta in adapter.delta_weights().items():
            model.get_parameter(name).add_(delta)
        return self._change_of(model)

    def _change_of(self, model: Base) -> Tensor:
        output: Tensor = model(self._inputs)
        return output.double() - self.plain.double()


def error_of(what: str, found: Tensor, wanted: Tensor, dtype: torch.dtype) -> Error:
    """Return how far a change is from the trainer's, relative to it."""
    relative = float((found - wanted).norm() / wanted.norm())
    return Error(what=what, dtype=dtype, relative=relative)


def errors_of_rows(
    twin: Twin, rows: Sequence[Row], changes: Sequence[Tensor], way: ApplyWord
) -> Iterator[Error]:
    """Yield the error of each row of one batch; rows of the base must be equal to the bit."""
    found = twin.change(rows, way)
    for index, row in enumerate(rows):
        what = f"{way}, row {index} of a batch: {row}"
        if not row:
            is_same = not bool(found[index].any())
            yield Error(what=what, dtype=twin.dtype, relative=0.0 if is_same else torch.inf)
            continue
        wanted = sum((p.weight * changes[p.adapter][index] for p in row), start=torch.zeros(()))
        yield error_of(what, found[index], wanted, twin.dtype)


FIRST, HALF, MINUS = (Part(adapter=0, weight=weight) for weight in WEIGHTS)
OTHER = Part(adapter=1, weight=1.0)
BATCH: tuple[Row, ...] = ((FIRST,), (), (HALF,), (OTHER,), (MINUS,), ())
BOTH: Row = (HALF, Part(adapter=1, weight=-1.0))


def errors_of(case: Case, layer: Layer, folder: Path, *, seed: int = 0) -> Iterator[Error]:
    """Yield every error of a case: both dtypes and ways, alone and beside others.

    Args:
        case: What is trained.
        layer: The layer that it names.
        folder: An empty folder for the adapters' files.
        seed: Draws the factors.
    """
    rows = BATCH if case.is_replacement else (*BATCH, BOTH)
    trained = []
    for name, factors in (("first", 2 * seed + 1), ("second", 2 * seed + 2)):
        (folder / name).mkdir()
        base = layer.base(torch.float64)
        trained.append(case.trainer.train(base, folder / name, factors))
    changes = [change_of(one, layer, len(rows)) for one in trained]
    for dtype in DTYPES:
        twin = Twin(layer, dtype, len(rows))
        adapters = [twin.add(one.path) for one in trained]
        found = twin.change_by_delta_weights(adapters[0])
        yield error_of("delta_weights", found, changes[0], dtype)
        for way in WAYS:
            for part in (FIRST, HALF, MINUS):
                found = twin.change([(part,)], way)
                wanted = part.weight * changes[0]
                yield error_of(f"{way}, alone at {part.weight}", found, wanted, dtype)
            yield from errors_of_rows(twin, rows, changes, way)

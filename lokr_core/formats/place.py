"""place: what the modules of a file amount to, put where it belongs in the base model.

A file may keep in one module what the base has split, or the other way round, or with its halves
swapped; deltas are sliced in factor form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lokr_core.errors import UnsupportedModuleError
from lokr_core.formats.binding import FileModule, Target
from lokr_core.ops.rows import row_slice
from lokr_core.spec import ModuleSpec
from lokr_core.weights import (
    DeltaWeights,
    Gain,
    GainAxis,
    ModuleWeights,
    Replacement,
    Rows,
    Term,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What one module of a file does, at its own shape."""

    deltas: tuple[DeltaWeights, ...] = ()
    gain: Gain | None = None
    vector: Tensor | None = None  # [O]
    bias: Tensor | None = None  # [O]
    replacement: Replacement | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the module stays what it is."""
        parts = (self.gain, self.vector, self.bias, self.replacement)
        return not self.deltas and all(part is None for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """Numbers for some outputs of a module."""

    at: int
    values: Tensor


@dataclass(slots=True)
class _Assembly:
    """What the modules of a file do to one module of the base, so far."""

    spec: ModuleSpec
    terms: list[Term] = field(default_factory=list)
    gains: list[_Piece] = field(default_factory=list)
    input_gain: Gain | None = None
    vectors: list[_Piece] = field(default_factory=list)
    biases: list[_Piece] = field(default_factory=list)
    replacement: Replacement | None = None

    def add(self, target: Target, change: Change) -> None:
        """Add what a change does to the outputs of a target."""
        at = target.at or 0
        for delta in change.deltas:
            is_whole = target.rows is None
            self.terms.append(Term(delta=delta) if is_whole else _slice(delta, target, at))
        gain = change.gain
        if gain is not None and gain.axis is GainAxis.INPUT:
            self.input_gain = gain
        elif gain is not None:
            self.gains.append(_Piece(at=at, values=_rows(gain.values, target)))
        for values, pieces in ((change.vector, self.vectors), (change.bias, self.biases)):
            if values is not None:
                pieces.append(_Piece(at=at, values=_rows(values, target)))
        if change.replacement is not None:
            self.replacement = Replacement(
                weight=_some_rows(change.replacement.weight, target),
                bias=_some_rows(change.replacement.bias, target),
            )

    def weights(self) -> ModuleWeights:
        """Return the whole."""
        size = self.spec.out_features
        gains = _joined(self.gains, size, fill=1)
        gain = self.input_gain
        if gains is not None:
            gain = Gain(values=gains, axis=GainAxis.OUTPUT)
        return ModuleWeights(
            terms=tuple(self.terms),
            gain=gain,
            vector=_joined(self.vectors, size, fill=0),
            bias=_joined(self.biases, size, fill=0),
            replacement=self.replacement,
        )


def place(changes: Iterable[tuple[FileModule, Change]]) -> dict[str, ModuleWeights]:
    """Return what the modules of a file do to those of the base, by path.

    Raises:
        UnsupportedModuleError: A gain by input belongs to some outputs of a module only.
    """
    assemblies: dict[str, _Assembly] = {}
    for module, change in changes:
        if change.is_empty:
            continue
        if change.gain is not None and change.gain.axis is GainAxis.INPUT:
            _check_all_outputs(module)
        for target in module.targets:
            assembly = assemblies.setdefault(target.spec.path, _Assembly(spec=target.spec))
            assembly.add(target, change)
    return {path: assembly.weights() for path, assembly in assemblies.items()}


def _check_all_outputs(module: FileModule) -> None:
    """Check that a gain by input is for all outputs of the modules that it changes."""
    for path in {target.spec.path for target in module.targets}:
        targets = [target for target in module.targets if target.spec.path == path]
        spec = targets[0].spec
        num_outputs = sum(len(_file_rows(target)) for target in targets)
        if num_outputs != spec.out_features:
            problem = f"a DoRA by input of {module.name!r} is for {num_outputs} of its outputs only"
            raise UnsupportedModuleError(path, problem)


def _file_rows(target: Target) -> Rows:
    return target.rows or Rows(start=0, stop=target.spec.out_features)


def _slice(delta: DeltaWeights, target: Target, at: int) -> Term:
    return row_slice(delta, _file_rows(target), at)


def _rows(values: Tensor, target: Target) -> Tensor:
    return values if target.rows is None else values[target.rows.start : target.rows.stop]


def _some_rows(values: Tensor | None, target: Target) -> Tensor | None:
    return None if values is None else _rows(values, target)


def _joined(pieces: Sequence[_Piece], size: int, *, fill: float) -> Tensor | None:
    """Return a vector of a module's outputs, ``fill`` where no piece is; None without pieces."""
    if not pieces:
        return None
    first = pieces[0].values
    if len(pieces) == 1 and len(first) == size:
        return first
    dtype = first.dtype
    for piece in pieces:
        dtype = torch.promote_types(dtype, piece.values.dtype)
    joined = torch.full((size,), fill, dtype=dtype)
    for piece in pieces:
        joined[piece.at : piece.at + len(piece.values)] = piece.values
    return joined

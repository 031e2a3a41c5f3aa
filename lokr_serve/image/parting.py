"""Parting: a call whose rows are of several kinds, as calls that are of one kind each.

Z-Image pads each caption to a multiple of its own length, and a guided request has two: where they
differ, its rows cannot be told apart among those of others, while those of each caption can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lokr_serve.image.calls import Call, CallSignature, bind_call, describe_item
from lokr_serve.image.joining import split, unsplit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some rows of a call, as a call of their own."""

    call: Call
    rows: tuple[int, ...]  # of the whole


def part_call(call: Call, signature: CallSignature) -> list[Part]:
    """Return a call as parts whose rows are of one kind each; itself, if all of its rows are."""
    if call.joining is not None:
        return [Part(call=call, rows=tuple(range(call.num_rows)))]
    kinds: dict[object, list[int]] = {}
    for row in range(call.num_rows):
        kinds.setdefault(_kind(call, signature, row), []).append(row)
    return [
        Part(call=_some_rows(call, signature, rows), rows=tuple(rows)) for rows in kinds.values()
    ]


def whole_output(name: str, parts: Sequence[Part], outputs: Sequence[object]) -> object:
    """Return the output of a call, given that of each of its parts."""
    if len(parts) == 1:
        return outputs[0]
    by_row: dict[int, object] = {}
    for part, output in zip(parts, outputs, strict=True):
        by_row |= zip(part.rows, split(name, output, [1] * len(part.rows)), strict=True)
    return unsplit([by_row[row] for row in sorted(by_row)])


def _kind(call: Call, signature: CallSignature, row: int) -> object:
    """Return what is equal in rows that may be in one call."""
    kinds: list[object] = []
    for name in sorted(signature.lists & call.arguments.keys()):
        items = call.arguments[name]
        assert isinstance(items, list), "a list was described as one"
        kinds.append(describe_item(name, items[row], signature.padded_lists.get(name, 1)))
    return tuple(kinds)


def _some_rows(call: Call, signature: CallSignature, rows: Sequence[int]) -> Call:
    by_row = signature.rows | signature.lists | signature.expanded | signature.repeated
    arguments = {
        name: _chosen(value, rows, call.num_rows) if name in by_row else value
        for name, value in call.arguments.items()
    }
    return bind_call(call.name, call.function, signature, (), arguments)


def _chosen(value: object, rows: Sequence[int], num_rows: int) -> object:
    if isinstance(value, Mapping):
        return {key: _chosen(item, rows, num_rows) for key, item in value.items()}
    if isinstance(value, list):
        return [value[row] for row in rows]
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == num_rows:
        return value[list(rows)]
    return value

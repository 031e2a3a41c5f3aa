"""Calls: what a pipeline asks of a shared module, and which calls may join in one forward."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lokr_serve.errors import ModelError

Function = Callable[..., object]

# Dtypes of numbers that torch promotes to one another without rounding what a timestep can be.
_WIDE_DTYPES = frozenset({torch.int32, torch.int64, torch.float32, torch.float64})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSignature:
    """How the arguments of a module's call belong to its N rows.

    Calls join only where an argument that is not named here is equal in all of them.
    """

    counted_by: str  # the argument whose length is N
    rows: frozenset[str]  # tensors [N, ...], mappings of such, or None: joined along the first axis
    lists: frozenset[str] = frozenset()  # lists of N items: joined
    expanded: frozenset[str] = frozenset()  # a number, or a tensor [], [1] or [N]: one for each row
    repeated: frozenset[str] = frozenset()  # tensors [N, ...] that have the same in every row
    # Of the rows, tensors [N, L, ...] by the argument that is their mask, [N, L] or None for all:
    # where others have more, they are padded with zeros that the mask hides.
    masked: Mapping[str, str] = field(default_factory=dict)
    # Of the lists, those of tensors [L, ...] which the module pads to a multiple of so many; calls
    # join where what it pads them to is equal.
    padded_lists: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallKey:
    """What is equal in all calls that may join."""

    name: str
    parts: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joining:
    """How a call joins others."""

    signature: CallSignature
    key: CallKey


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a shared module's function, with its arguments by name."""

    name: str  # of the component, and of its function where that is not the forward
    function: Function
    arguments: Mapping[str, object]
    num_rows: int
    joining: Joining | None  # None: it runs alone, or in parts


def bind_call(
    name: str,
    function: Function,
    signature: CallSignature | None,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Call:
    """Return a call with its arguments bound to the names that the function gives them.

    Args:
        name: The component, and its function where that is not the forward.
        function: Of the shared module.
        signature: How its arguments belong to rows; None for a call that runs alone.
        args: What the caller gave by place.
        kwargs: What the caller gave by name.

    Raises:
        ModelError: An argument is none that calls may bring.
    """
    arguments = _bind(name, function, args, kwargs)
    if signature is None:
        return Call(name=name, function=function, arguments=arguments, num_rows=1, joining=None)
    _refuse_state(name, arguments)
    num_rows = _count_rows(name, arguments, signature)
    parts = _describe(name, arguments, signature, num_rows)
    key = None if parts is None else CallKey(name=name, parts=parts)
    return Call(
        name=name,
        function=function,
        arguments=arguments,
        num_rows=num_rows,
        joining=None if key is None else Joining(signature=signature, key=key),
    )


def _bind(
    name: str, function: Function, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, object]:
    forward = function.forward if isinstance(function, nn.Module) else function
    signature = inspect.signature(forward)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ModelError(f"{name} is called with other arguments than it has: {error}") from error
    arguments: dict[str, object] = {}
    for argument, value in bound.items():
        kind = signature.parameters[argument].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY):
            raise ModelError(f"{name} is called with *{argument}, which cannot be told by name")
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[argument] = value
    return arguments


def _refuse_state(name: str, arguments: Mapping[str, object]) -> None:
    """Refuse what reaches into attention, such as IP-Adapters and the scale of loaded LoRAs."""
    for argument, value in arguments.items():
        if argument.endswith("attention_kwargs") and value:
            raise ModelError(
                f"{name} is called with {argument}, which reach into layers that requests share"
            )


def _count_rows(name: str, arguments: Mapping[str, object], signature: CallSignature) -> int:
    counted = arguments.get(signature.counted_by)
    if isinstance(counted, Tensor) and counted.ndim:
        return counted.shape[0]
    if isinstance(counted, list):
        return len(counted)
    raise ModelError(
        f"{name} is called without {signature.counted_by}, a tensor or list that tells its rows"
    )


def _describe(
    name: str, arguments: Mapping[str, object], signature: CallSignature, num_rows: int
) -> tuple[object, ...] | None:
    """Return what must be equal in calls that join, or None if no other call may join this one."""
    parts: list[object] = []
    for argument, value in sorted(arguments.items()):
        where = f"{name}: argument {argument}"
        if argument in signature.masked.values():
            continue  # a mask can be made for whoever has none
        if argument in signature.masked:
            part = _describe_masked(where, value, arguments.get(signature.masked[argument]))
        elif argument in signature.rows:
            part = _describe_rows(where, value, num_rows)
        elif argument in signature.lists:
            items = _describe_list(where, value, signature.padded_lists.get(argument, 1), num_rows)
            if len(items) != 1:
                return None  # rows of several lengths: nobody could tell them from one another's
            (part,) = items
        elif argument in signature.expanded:
            part = _describe_expanded(where, value, num_rows)
        elif argument in signature.repeated:
            part = _describe_repeated(where, value, num_rows)
        else:
            part = _describe_shared(where, value)
        parts.append((argument, part))
    return tuple(parts)


def _describe_rows(where: str, value: object, num_rows: int) -> object:
    if value is None:
        return None
    if isinstance(value, Mapping):
        items = sorted(value.items())
        return tuple((key, _describe_rows(f"{where}[{key!r}]", v, num_rows)) for key, v in items)
    if not isinstance(value, Tensor):
        raise ModelError(f"{where} is a {type(value).__name__}, not a tensor of rows")
    if value.ndim == 0 or value.shape[0] != num_rows:
        raise ModelError(f"{where} is {tuple(value.shape)} in a call of {num_rows} rows")
    return value.dtype, value.device, tuple(value.shape[1:])


def _describe_repeated(where: str, value: object, num_rows: int) -> object:
    """Return what every row of a tensor has."""
    _describe_rows(where, value, num_rows)
    assert isinstance(value, Tensor)
    first = value[:1]
    if not torch.equal(value, first.expand_as(value)):
        raise ModelError(f"{where} has other values in some of its {num_rows} rows")
    return _describe_shared(where, first)


def _describe_masked(where: str, value: object, mask: object) -> object:
    if not isinstance(value, Tensor) or value.ndim < 2:
        raise ModelError(f"{where} is no tensor of rows that have lengths")
    if isinstance(mask, Tensor) and mask.shape != value.shape[:2]:
        raise ModelError(f"{where} is {tuple(value.shape)}, but its mask {tuple(mask.shape)}")
    return value.dtype, value.device, tuple(value.shape[2:])


def _describe_list(where: str, value: object, multiple: int, num_rows: int) -> frozenset[object]:
    """Return what the items of a list are, each kind once."""
    if not isinstance(value, list) or len(value) != num_rows:
        raise ModelError(f"{where} is not a list of {num_rows} items, one for each row")
    return frozenset(describe_item(where, item, multiple) for item in value)


def describe_item(where: str, item: object, multiple: int) -> object:
    """Return what is equal in items of a list that may be in one call."""
    if not isinstance(item, Tensor):
        return _describe_shared(where, item)
    length = -(-item.shape[0] // multiple) * multiple
    return item.dtype, item.device, (length, *item.shape[1:])


def _describe_expanded(where: str, value: object, num_rows: int) -> object:
    if isinstance(value, (int, float)):
        return "number"
    if not isinstance(value, Tensor) or tuple(value.shape) not in {(), (1,), (num_rows,)}:
        raise ModelError(f"{where} is neither one number nor one for each of {num_rows} rows")
    return "number" if value.dtype in _WIDE_DTYPES else value.dtype


def _describe_shared(where: str, value: object) -> object:
    """Return a value that is equal where arguments are; of a tensor, its bytes."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        return value.dtype, value.device, tuple(value.shape), flat.numpy().tobytes()
    if isinstance(value, Mapping):
        return tuple((key, _describe_shared(where, v)) for key, v in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(_describe_shared(where, item) for item in value)
    raise ModelError(f"{where} is a {type(value).__name__}, which calls cannot be compared by")

"""Joining: many calls as one forward, and its output handed back row by row."""

from collections.abc import Mapping, Sequence

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor
from transformers.utils.generic import ModelOutput

from lokr_serve.errors import ModelError
from lokr_serve.image.calls import Call, CallSignature


def join(calls: Sequence[Call]) -> dict[str, object]:
    """Return the arguments of one call that does the work of several with equal keys."""
    first = calls[0]
    assert first.joining is not None, f"{first.name} runs alone"
    signature = first.joining.signature
    masks = {signature.masked[name] for name in first.arguments if name in signature.masked}
    names = [*first.arguments, *sorted(masks - first.arguments.keys())]
    return {name: _join_argument(name, calls, signature) for name in names}


def split(name: str, output: object, num_rows: Sequence[int]) -> list[object]:
    """Return the output of each call, given that of all together.

    Args:
        name: Of the calls.
        output: A tensor [sum of rows, ...], a list with an item for each row, or a tuple or an
            output class of such.
        num_rows: Rows of each call.

    Raises:
        ModelError: A part of the output does not say which row it belongs to.
    """
    if output is None:
        return [None] * len(num_rows)
    if isinstance(output, Tensor):
        return _split_tensor(name, output, num_rows)
    if isinstance(output, list) and len(output) == sum(num_rows):
        ends = [sum(num_rows[: i + 1]) for i in range(len(num_rows))]
        return [output[end - n : end] for end, n in zip(ends, num_rows, strict=True)]
    if isinstance(output, (BaseOutput, ModelOutput)):
        parts = {key: split(name, value, num_rows) for key, value in output.items()}
        return [
            type(output)(**{key: values[i] for key, values in parts.items()})
            for i in range(len(num_rows))
        ]
    if isinstance(output, tuple):
        items = [split(name, item, num_rows) for item in output]
        return [tuple(item[i] for item in items) for i in range(len(num_rows))]
    raise ModelError(
        f"{name} returns a {type(output).__name__}, whose rows cannot be told from one another"
    )


def unsplit(outputs: Sequence[object]) -> object:
    """Return the output of one call, given that of each of its rows; undoes :func:`split`."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat([output for output in outputs if isinstance(output, Tensor)])
    if isinstance(first, list):
        return [item for output in outputs if isinstance(output, list) for item in output]
    if isinstance(first, (BaseOutput, ModelOutput)):
        mappings = [output for output in outputs if isinstance(output, Mapping)]
        return type(first)(**{key: unsplit([m[key] for m in mappings]) for key in first})
    if isinstance(first, tuple):
        tuples = [output for output in outputs if isinstance(output, tuple)]
        return tuple(unsplit(items) for items in zip(*tuples, strict=True))
    return first


def _split_tensor(name: str, output: Tensor, num_rows: Sequence[int]) -> list[object]:
    if output.ndim == 0 or output.shape[0] != sum(num_rows):
        raise ModelError(
            f"{name} returns a tensor {tuple(output.shape)} for {sum(num_rows)} rows, which cannot "
            "be told from one another"
        )
    return list(output.split(list(num_rows)))


def _join_argument(name: str, calls: Sequence[Call], signature: CallSignature) -> object:
    values = [call.arguments.get(name) for call in calls]  # a mask may be left out
    if name in signature.masked:
        return _join_masked(values)
    if name in signature.masked.values():
        (masked,) = (key for key, mask in signature.masked.items() if mask == name)
        return _join_masks(values, [call.arguments[masked] for call in calls])
    if name in signature.rows | signature.repeated:
        return _join_rows(values)
    if name in signature.lists:
        return [item for value in values if isinstance(value, list) for item in value]
    if name in signature.expanded:
        device = _device(calls[0].arguments[signature.counted_by])
        pairs = zip(calls, values, strict=True)
        return torch.cat([_expand(value, call.num_rows, device) for call, value in pairs])  # [N]
    return values[0]


def _join_rows(values: Sequence[object]) -> object:
    first = values[0]
    if isinstance(first, Mapping):
        mappings = [value for value in values if isinstance(value, Mapping)]
        return {key: _join_rows([mapping[key] for mapping in mappings]) for key in first}
    tensors = [value for value in values if isinstance(value, Tensor)]
    return torch.cat(tensors) if tensors else None  # [N, ...]


def _join_masked(values: Sequence[object]) -> Tensor:
    """Return rows of several lengths as rows of the longest, [N, L, ...]."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    longest = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([_padded(tensor, longest) for tensor in tensors])


def _join_masks(masks: Sequence[object], values: Sequence[object]) -> Tensor | None:
    """Return the mask of such rows, [N, L], or None where every one is seen from end to end."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    lengths = {tensor.shape[1] for tensor in tensors}
    if len(lengths) == 1 and not any(isinstance(mask, Tensor) for mask in masks):
        return None
    whole = [
        mask.bool()
        if isinstance(mask, Tensor)
        else torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device)
        for mask, tensor in zip(masks, tensors, strict=True)
    ]
    return torch.cat([_padded(mask, max(lengths)) for mask in whole])


def _padded(rows: Tensor, length: int) -> Tensor:
    """Return rows [n, L, ...] with zeros (of a mask, False) up to a length."""
    padding = rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, padding], dim=1)


def _expand(value: object, num_rows: int, device: torch.device) -> Tensor:
    """Return a number for each row, in its own dtype; of Python's numbers, in the widest."""
    if not isinstance(value, Tensor):
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        value = torch.tensor(value, dtype=dtype)
    return value.to(device).reshape(-1).expand(num_rows)


def _device(counted: object) -> torch.device:
    tensor = counted[0] if isinstance(counted, list) else counted
    assert isinstance(tensor, Tensor)
    return tensor.device

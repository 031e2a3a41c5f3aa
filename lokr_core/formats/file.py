"""Safetensors files: read once, so that their hash is of what their tensors hold, and checked."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lokr_core.errors import AdapterFileError, AdapterTensorError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_LENGTH_BYTES = 8  # little-endian length of the header, before it

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileContent:
    """The bytes of a safetensors file, before they are understood."""

    path: Path
    content: Tensor  # uint8
    data_start: int  # where the header ends

    @property
    def header(self) -> bytes:
        """The header with its length: all that the file says of its tensors beside their values."""
        return bytes(memory(self.content)[: self.data_start])

    def digest(self) -> str:
        """Return the hex SHA-256 of the file's bytes."""
        return hashlib.sha256(memory(self.content)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorFile:
    """What a safetensors file holds; the tensors are views of the bytes that were read."""

    tensors: Mapping[str, Tensor]  # in the order of the file's header
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One tensor as the header describes it; begin and end are offsets into the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_bytes(path: Path) -> Tensor:
    """Return the bytes of a regular file, uint8.

    Raises:
        AdapterFileError: The file is missing, no regular file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise AdapterFileError(f"{path}: not a regular file")
        with path.open("rb", buffering=0) as file:
            content = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
            view, end = memory(content), 0
            while end < len(view):
                num_read = file.readinto(view[end:])
                if not num_read:
                    raise AdapterFileError(f"{path}: became shorter while it was read")
                end += num_read
    except OSError as error:
        raise AdapterFileError(f"{path}: cannot be read: {error.strerror}") from error
    return content


def read_file(path: Path) -> FileContent:
    """Read a whole safetensors file.

    Raises:
        AdapterFileError: The file is missing, unreadable, or too short for its header.
    """
    content = read_bytes(path)
    num_bytes = content.numel()
    if num_bytes < _LENGTH_BYTES:
        raise _not_safetensors(path, f"it has only {num_bytes} bytes")
    length = int.from_bytes(memory(content)[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES or _LENGTH_BYTES + length > num_bytes:
        raise _not_safetensors(path, f"a header of {length} bytes in a file of {num_bytes}")
    return FileContent(path=path, content=content, data_start=_LENGTH_BYTES + length)


def parse_file(file: FileContent) -> TensorFile:
    """Find the tensors in the bytes of a file.

    Raises:
        AdapterFileError: The file is truncated, or not safetensors.
        AdapterTensorError: A tensor has a dtype that is not known.
    """
    path, data = file.path, file.content[file.data_start :]
    header = _parse_header(path, file.header[_LENGTH_BYTES:])
    metadata = _parse_metadata(path, header.pop("__metadata__", {}))
    entries = [_parse_entry(path, name, fields) for name, fields in header.items()]
    _check_coverage(path, entries, data.numel())
    return TensorFile(
        tensors={entry.name: _view(data, entry) for entry in entries}, metadata=metadata
    )


def memory(content: Tensor) -> memoryview:
    """Return the memory of a uint8 tensor."""
    return content.numpy().data


def parse_json(text: bytes) -> object:
    """Parse JSON, and refuse an object that gives one key twice.

    Raises:
        ValueError: The text is not UTF-8, not JSON, nested too deeply, or gives a key twice.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


def _not_safetensors(path: Path, problem: str) -> AdapterFileError:
    return AdapterFileError(f"{path}: not a whole safetensors file: {problem}")


def _parse_header(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _not_safetensors(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _not_safetensors(path, "its header is no JSON object")
    return header


def _parse_metadata(path: Path, fields: object) -> dict[str, str]:
    if not isinstance(fields, dict):
        raise _not_safetensors(path, "__metadata__ is no JSON object")
    for key, value in fields.items():
        if not isinstance(value, str):
            raise _not_safetensors(path, f"__metadata__ holds {key!r}, which is no text")
    return fields


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of sizes as a tuple, or None if it is anything else."""
    if not isinstance(value, list):
        return None
    sizes = tuple(item for item in value if type(item) is int and item >= 0)
    return sizes if len(sizes) == len(value) else None


def _parse_entry(path: Path, name: str, fields: object) -> _Entry:
    if not isinstance(fields, dict):
        raise _not_safetensors(path, f"tensor {name!r} is not described by a JSON object")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise _not_safetensors(path, f"tensor {name!r} has a malformed shape or data_offsets")
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise AdapterTensorError(name, f"has dtype {fields.get('dtype')!r}, which is not served")
    begin, end = offsets
    if end - begin != prod(shape) * dtype.itemsize:
        raise _not_safetensors(path, f"tensor {name!r} is {shape} in {end - begin} bytes")
    return _Entry(name=name, dtype=dtype, shape=shape, begin=begin, end=end)


def _check_coverage(path: Path, entries: list[_Entry], num_bytes: int) -> None:
    """Check that the tensors lie end to end and fill the data, as safetensors demands."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise _not_safetensors(
                path, f"tensor {entry.name!r} starts at {entry.begin}, not {end}"
            )
        end = entry.end
    if end != num_bytes:
        raise _not_safetensors(path, f"its tensors need {end} bytes but {num_bytes} are there")


def _view(data: Tensor, entry: _Entry) -> Tensor:
    flat = data[entry.begin : entry.end]
    if flat.storage_offset() % entry.dtype.itemsize:
        flat = flat.clone()  # a view in another dtype must be aligned
    return flat.view(entry.dtype).view(entry.shape)

"""The header of a safetensors file: what it says of its tensors, checked before they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from lokr_core.errors import AdapterFileError, AdapterTensorError, quoted
from lokr_core.formats.strict_json import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_TENSORS = 50_000  # a LoKr of every layer of FLUX.1 has 2,500
MAX_ELEMENTS = 1 << 50  # so that strides do not overflow
MAX_DIMS = 8  # a Conv3d has five
MAX_KEY_CHARS = 256

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor as the header describes it; begin and end are offsets into the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """What a file says of its tensors; they lie end to end and fill its data."""

    entries: tuple[TensorEntry, ...]  # in the order of the file's header
    metadata: Mapping[str, str]


def parse_header(path: Path, text: bytes, num_data_bytes: int) -> FileHeader:
    """Parse a header, and check it against the size of the data behind it.

    Args:
        path: The file, for messages.
        text: The header's JSON.
        num_data_bytes: What is left of the file after the header.

    Raises:
        AdapterFileError: The header is malformed, or does not describe that many bytes.
        AdapterTensorError: A tensor has a dtype that is not known, or is empty but huge.
    """
    fields = _parse_object(path, text)
    metadata = _parse_metadata(path, fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise not_safetensors(path, f"it has {len(fields)} tensors, more than {MAX_TENSORS}")
    entries = tuple(_parse_entry(path, name, value) for name, value in fields.items())
    _check_coverage(path, entries, num_data_bytes)
    return FileHeader(entries=entries, metadata=metadata)


def not_safetensors(path: Path, problem: str) -> AdapterFileError:
    """Return the error for a file that is no safetensors file, or not all of one."""
    return AdapterFileError(f"{path}: not a whole safetensors file: {problem}")


def _parse_object(path: Path, text: bytes) -> dict[str, object]:
    if not text.startswith(b"{"):
        raise not_safetensors(path, "its header does not begin as a JSON object")
    try:
        header = parse_json(text)
    except ValueError as error:
        raise not_safetensors(path, f"its header {error}") from error
    assert isinstance(header, dict)
    return header


def _parse_metadata(path: Path, fields: object) -> dict[str, str]:
    if not isinstance(fields, dict):
        raise not_safetensors(path, "__metadata__ is no JSON object")
    for key, value in fields.items():
        if not isinstance(value, str):
            raise not_safetensors(path, f"__metadata__ holds {quoted(key)}, which is no text")
    return fields


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of sizes as a tuple, or None if it is anything else."""
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        return None
    sizes = tuple(item for item in value if type(item) is int and item >= 0)
    return sizes if len(sizes) == len(value) else None


def _parse_entry(path: Path, name: str, fields: object) -> TensorEntry:
    if len(name) > MAX_KEY_CHARS or not name.isprintable():
        problem = "is longer than any module's or holds control characters"
        raise not_safetensors(path, f"the name {quoted(name)} {problem}")
    if not isinstance(fields, dict):
        raise not_safetensors(path, f"tensor {quoted(name)} is not described by a JSON object")
    shape, offsets = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        raise not_safetensors(path, f"tensor {quoted(name)} has a malformed shape or data_offsets")
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        problem = f"has dtype {quoted(fields.get('dtype'))}, which is not served"
        raise AdapterTensorError(name, problem)
    begin, end = offsets
    if end - begin != prod(shape) * dtype.itemsize:
        raise not_safetensors(path, f"tensor {quoted(name)} is {shape} in {end - begin} bytes")
    if prod(max(size, 1) for size in shape) > MAX_ELEMENTS:  # of an empty tensor
        raise AdapterTensorError(name, f"is empty: {shape}")
    return TensorEntry(name=name, dtype=dtype, shape=shape, begin=begin, end=end)


def _check_coverage(path: Path, entries: tuple[TensorEntry, ...], num_bytes: int) -> None:
    """Check that the tensors lie end to end and fill the data, as safetensors demands."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            name = quoted(entry.name)
            raise not_safetensors(path, f"tensor {name} starts at {entry.begin}, not {end}")
        end = entry.end
    if end != num_bytes:
        raise not_safetensors(path, f"its tensors need {end} bytes but {num_bytes} are there")

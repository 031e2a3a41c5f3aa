"""Safetensors files: read once, so that their hash is of what their tensors hold, and checked."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from lokr_core.errors import AdapterFileError
from lokr_core.formats.header import (
    MAX_HEADER_BYTES,
    FileHeader,
    TensorEntry,
    not_safetensors,
    parse_header,
)
from lokr_core.formats.opening import fill, opened

_LENGTH_BYTES = 8  # little-endian length of the header, before it

# How files begin that go by the name of safetensors; the commonest is a page in place of a file.
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it, whose pickle can run code",
    b"\x80\x02": "a pickle, which can run code when it is opened",
    b"\x80\x03": "a pickle, which can run code when it is opened",
    b"\x80\x04": "a pickle, which can run code when it is opened",
    b"\x80\x05": "a pickle, which can run code when it is opened",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file",
    b"<": "a web page in place of the file",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileContent:
    """The bytes of a safetensors file, before they are understood."""

    path: Path
    content: Tensor  # uint8
    data_start: int  # where the header ends
    parsed: FileHeader | None = None  # if it had to be parsed before the file was read

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


def read_file(path: Path, is_known: Callable[[bytes, int], bool] | None = None) -> FileContent:
    """Read a whole safetensors file; memory for its tensors is taken when its header is sound.

    Args:
        path: The file.
        is_known: Whether a header, its length included, of a file of so many bytes was found to
            be sound before, so that it need not be parsed.

    Raises:
        AdapterFileError: The file is missing, unreadable, truncated, or not safetensors.
        AdapterTensorError: A tensor has a dtype that is not known, or is empty but huge.
    """
    with opened(path) as (file, num_bytes):
        header = _read_header(path, file, num_bytes)
        parsed = None
        if is_known is None or not is_known(header, num_bytes):
            parsed = parse_header(path, header[_LENGTH_BYTES:], num_bytes - len(header))
        content = _allocate(path, num_bytes)
        view = memory(content)
        view[: len(header)] = header
        fill(path, file, view[len(header) :])
    return FileContent(path=path, content=content, data_start=len(header), parsed=parsed)


def parse_file(file: FileContent) -> TensorFile:
    """Find the tensors in the bytes of a file.

    Raises:
        AdapterFileError: The file is truncated, or not safetensors.
        AdapterTensorError: A tensor has a dtype that is not known, or is empty but huge.
    """
    data = file.content[file.data_start :]
    header = file.parsed
    if header is None:
        header = parse_header(file.path, file.header[_LENGTH_BYTES:], data.numel())
    tensors = {entry.name: _view(data, entry) for entry in header.entries}
    return TensorFile(tensors=tensors, metadata=header.metadata)


def memory(content: Tensor) -> memoryview:
    """Return the memory of a uint8 tensor."""
    return content.numpy().data


def _read_header(path: Path, file: FileIO, num_bytes: int) -> bytes:
    """Return the header with the length before it."""
    start = bytearray(min(num_bytes, 32))
    fill(path, file, memoryview(start))
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    is_header = bytes(start[_LENGTH_BYTES : _LENGTH_BYTES + 1]) == b"{"
    for sign, name in _OTHERS.items():
        if start.startswith(sign) and not (is_header and end <= num_bytes):
            raise not_safetensors(path, f"it begins like {name}")
    if num_bytes < _LENGTH_BYTES:
        raise not_safetensors(path, f"it has only {num_bytes} bytes")
    if length > MAX_HEADER_BYTES or end > num_bytes:
        raise not_safetensors(path, f"a header of {length} bytes in a file of {num_bytes}")
    header = bytearray(end)
    file.seek(0)
    fill(path, file, memoryview(header))
    return bytes(header)


def _allocate(path: Path, num_bytes: int) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise AdapterFileError(f"{path}: no memory for its {num_bytes} bytes") from error


def _view(data: Tensor, entry: TensorEntry) -> Tensor:
    flat = data[entry.begin : entry.end]
    if flat.storage_offset() % entry.dtype.itemsize:
        flat = flat.clone()  # a view in another dtype must be aligned
    return flat.view(entry.dtype).view(entry.shape)

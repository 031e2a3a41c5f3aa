"""Safetensors files: read once, so that their hash is of what their tensors hold, and checked."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from lokr_core.errors import AdapterFileError, quoted
from lokr_core.formats.header import (
    MAX_HEADER_BYTES,
    FileHeader,
    TensorEntry,
    not_safetensors,
    parse_header,
)

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


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file that is no larger than ``max_bytes``.

    Raises:
        AdapterFileError: The file is missing, no regular file, too large, or cannot be read.
    """
    with _opened(path) as (file, num_bytes):
        if num_bytes > max_bytes:
            raise AdapterFileError(f"{path}: has {num_bytes} bytes, more than {max_bytes}")
        content = _allocate(path, num_bytes)
        _fill(path, file, memory(content))
    return bytes(memory(content))


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
    with _opened(path) as (file, num_bytes):
        header = _read_header(path, file, num_bytes)
        parsed = None
        if is_known is None or not is_known(header, num_bytes):
            parsed = parse_header(path, header[_LENGTH_BYTES:], num_bytes - len(header))
        content = _allocate(path, num_bytes)
        view = memory(content)
        view[: len(header)] = header
        _fill(path, file, view[len(header) :])
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


@contextmanager
def _opened(path: Path) -> Iterator[tuple[FileIO, int]]:
    """Yield a regular file and its size, and check afterwards that it was left alone meanwhile."""
    with cannot_read(path), _open(path) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise AdapterFileError(f"{path}: not a regular file")
        yield file, before.st_size
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise AdapterFileError(f"{path}: was written to while it was read")


@contextmanager
def cannot_read(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error that names the path."""
    try:
        yield
    except IsADirectoryError as error:
        raise AdapterFileError(f"{path}: not a regular file") from error
    except OSError as error:
        raise AdapterFileError(f"{path}: cannot be read: {error.strerror}") from error


def _open(path: Path) -> FileIO:
    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # or a pipe would be waited for

    try:
        return FileIO(path, "rb", opener=without_waiting)
    except ValueError as error:  # a NUL, say
        raise AdapterFileError(f"{quoted(str(path))}: is no path: {error}") from error


def _read_header(path: Path, file: FileIO, num_bytes: int) -> bytes:
    """Return the header with the length before it."""
    start = bytearray(min(num_bytes, 32))
    _fill(path, file, memoryview(start))
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
    _fill(path, file, memoryview(header))
    return bytes(header)


def _allocate(path: Path, num_bytes: int) -> Tensor:
    try:
        return torch.empty(num_bytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise AdapterFileError(f"{path}: no memory for its {num_bytes} bytes") from error


def _fill(path: Path, file: FileIO, view: memoryview) -> None:
    end = 0
    while end < len(view):
        num_read = file.readinto(view[end:])
        if not num_read:
            raise AdapterFileError(f"{path}: became shorter while it was read")
        end += num_read


def _view(data: Tensor, entry: TensorEntry) -> Tensor:
    flat = data[entry.begin : entry.end]
    if flat.storage_offset() % entry.dtype.itemsize:
        flat = flat.clone()  # a view in another dtype must be aligned
    return flat.view(entry.dtype).view(entry.shape)

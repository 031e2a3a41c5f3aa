"""AdapterSource: the files that a path stands for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lokr_core.formats.file import FileContent, read_file
from lokr_core.formats.locate import MAX_CONFIG_BYTES, find_files
from lokr_core.formats.opening import read_small_file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterSource:
    """The tensor file of an adapter, and PEFT's configuration beside it if there is one."""

    file: FileContent
    config: bytes | None


def open_source(path: Path, is_known: Callable[[bytes, int], bool] | None = None) -> AdapterSource:
    """Read the files that a path stands for.

    Args:
        path: As :func:`~lokr_core.formats.locate.find_files` takes it.
        is_known: Whether a header of a file of so many bytes was found to be sound before.

    Raises:
        AdapterFileError: There is no such file, it is a pickle, or it is not safetensors.
        AdapterTensorError: A tensor has a dtype that is not known, or is empty but huge.
    """
    files = find_files(path)
    config = None if files.config is None else read_small_file(files.config, MAX_CONFIG_BYTES)
    return AdapterSource(file=read_file(files.tensors, is_known), config=config)

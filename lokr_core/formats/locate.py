"""Where the files of an adapter lie, by their names alone."""

from dataclasses import dataclass
from pathlib import Path

from lokr_core.errors import AdapterFileError, listed
from lokr_core.formats.opening import cannot_read

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
MAX_CONFIG_BYTES = 4 << 20  # 4 MiB; one rank for each of 10,000 modules is 1 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """Where an adapter's tensors lie, and PEFT's configuration of them if there is one."""

    tensors: Path
    config: Path | None


def default_id(path: Path) -> str:
    """Return the adapter id that a path gives: the folder's name, or the file's without suffix."""
    return path.absolute().name.removesuffix(SUFFIX)


def find_files(path: Path) -> AdapterFiles:
    """Return the files that a path stands for, by their names alone.

    Args:
        path: A safetensors file; a folder with PEFT's two files; or a folder with a single
            safetensors file.

    Raises:
        AdapterFileError: There is no such file in a folder, or it is a pickle.
    """
    with cannot_read(path):
        tensors = _tensors_path(path)
        config = tensors.with_name(CONFIG_NAME)
        has_config = tensors.name == TENSORS_NAME and config.exists()
    return AdapterFiles(tensors=tensors, config=config if has_config else None)


def _tensors_path(path: Path) -> Path:
    if _is_pickle(path):
        raise _pickle_error(path)
    if not path.is_dir():
        return path
    if (path / TENSORS_NAME).exists() or (path / CONFIG_NAME).exists():
        if not (path / TENSORS_NAME).exists():
            _refuse_pickles(path)
        return path / TENSORS_NAME
    found = sorted(item for item in path.iterdir() if item.suffix == SUFFIX)
    if len(found) > 1:
        names = listed([item.name for item in found])
        raise AdapterFileError(f"{path}: holds several safetensors files, name one of {names}")
    if not found:
        _refuse_pickles(path)
        raise AdapterFileError(f"{path}: is a folder without a {SUFFIX} file")
    return found[0]


def _refuse_pickles(folder: Path) -> None:
    """Name the pickle that a folder holds in place of a tensor file."""
    for item in sorted(folder.iterdir()):
        if _is_pickle(item):
            raise _pickle_error(item)


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLE_SUFFIXES


def _pickle_error(path: Path) -> AdapterFileError:
    return AdapterFileError(
        f"{path}: a {path.suffix} file is a pickle, which can run code when it is opened; "
        f"save the adapter as {SUFFIX}"
    )

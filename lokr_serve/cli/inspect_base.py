"""A base model to hold adapters against: its modules alone, which is quick, or with its weights."""

import importlib
import json
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from lokr_core.formats.header import DTYPES
from lokr_core.formats.inspect.file_base import without_memory
from lokr_serve.errors import ModelError, SettingsError

Base = nn.Module | Mapping[str, nn.Module]
Json = Mapping[str, object]

PIPELINE_NAME = "model_index.json"
CONFIG_NAME = "config.json"
_DTYPE_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FAILURES = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


class Dtype(Enum):
    """A dtype of base weights."""

    AUTO = "auto"
    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def read_modules(folder: Path, dtype: Dtype) -> Base:
    """Return the modules of a model without its weights, which all have one value.

    Args:
        folder: A model of transformers or diffusers, or a pipeline.
        dtype: Of the weights; AUTO is that of their files.

    Raises:
        SettingsError: The folder holds no model.
        ModelError: Its modules cannot be made.
    """
    return _each(folder, lambda part: _make(part, _torch_dtype(part, dtype)))


def load_weights(folder: Path, dtype: Dtype) -> Base:
    """Return a model with its weights, on the CPU; takes long.

    Args:
        folder: A model of transformers or diffusers, or a pipeline.
        dtype: Of the weights; AUTO is that of their files.

    Raises:
        SettingsError: The folder holds no model.
        ModelError: It cannot be loaded.
    """
    return _each(folder, lambda part: _load(part, _torch_dtype(part, dtype)))


def _each(folder: Path, make: Callable[[Path], nn.Module]) -> Base:
    """Return the one model of a folder, or those of a pipeline by name."""
    try:
        if (folder / PIPELINE_NAME).is_file():
            names = [
                name for name, value in _read(folder / PIPELINE_NAME).items() if _is_part(value)
            ]
            parts = [name for name in names if (folder / name / CONFIG_NAME).is_file()]
            return {name: make(folder / name) for name in parts}
        if not (folder / CONFIG_NAME).is_file():
            raise SettingsError(f"model: {folder} is not a model folder: it has no {CONFIG_NAME}")
        return make(folder)
    except _FAILURES as error:
        problem = str(error).partition("\n")[0]
        raise ModelError(f"model: {folder} cannot be read: {problem}") from error


def _read(path: Path) -> Json:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(f"model: {path} is no JSON object")
    return value


def _is_part(value: object) -> bool:
    """Return whether an entry of a pipeline is a model of a library that is known here."""
    return isinstance(value, list) and value[:1] in (["diffusers"], ["transformers"])


def _torch_dtype(folder: Path, dtype: Dtype) -> torch.dtype:
    """Return a dtype by name, or that of the first weight that the folder stores."""
    if dtype is not Dtype.AUTO:
        return DTYPES[_DTYPE_NAMES[dtype.value]]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  it is no mapping
                return DTYPES[str(file.get_slice(key).get_dtype())]
    return torch.float32


def _make(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the modules of a model, as its configuration describes them."""
    config, kind = _class(folder)
    with torch.device("meta"):
        model = kind.from_config(config) if "_class_name" in config else kind(_config(folder))
    return without_memory(nn.Module.to(model, dtype))


def _load(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers.utils.logging import disable_progress_bar  # slow to import

    config, kind = _class(folder)
    if "_class_name" in config:
        model: nn.Module = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    else:
        disable_progress_bar()
        model, report = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(f"model: {folder} lacks weights, such as {missing[0]!r}")
    return nn.Module.eval(model).requires_grad_(False)


def _config(folder: Path) -> object:
    from transformers import AutoConfig  # slow to import

    config: object = AutoConfig.from_pretrained(folder, local_files_only=True)
    return config


def _class(folder: Path) -> tuple[Json, Any]:
    """Return the configuration of a model, and its class in diffusers or transformers."""
    config = _read(folder / CONFIG_NAME)
    library, name = "diffusers", config.get("_class_name")
    if name is None:
        names = config.get("architectures")
        library, name = "transformers", names[0] if isinstance(names, list) and names else None
    try:
        kind = getattr(importlib.import_module(library), str(name), None)
    except ImportError as error:
        raise ModelError(f"model: {folder} needs {library}, which is not installed") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ModelError(f"model: {folder} is a {name!r}, which is no model of {library}")
    return config, kind

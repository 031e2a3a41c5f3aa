"""A base model to hold adapters against: its modules alone, which is quick, or with its weights."""

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from lokr_core.formats.header import DTYPES
from lokr_core.formats.inspect.file_base import without_memory
from lokr_serve.cli.command import Dtype
from lokr_serve.errors import ModelError, SettingsError
from lokr_serve.image.folder import INDEX_NAME, is_pipeline
from lokr_serve.pretrained import CONFIG_NAME, read_config, read_weights, reading, require_model

Base = nn.Module | Mapping[str, nn.Module]
Json = Mapping[str, object]

_DTYPE_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class _DiffusersClass(Protocol):
    """A class of models of diffusers."""

    def from_config(self, config: Json) -> nn.Module:
        """Return a model as a configuration describes it."""

    def from_pretrained(
        self, folder: Path, *, torch_dtype: torch.dtype, local_files_only: bool
    ) -> nn.Module:
        """Return a model with its weights."""


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
    with reading(folder, ModelError):
        if is_pipeline(folder):
            parts = [name for name, value in _read(folder / INDEX_NAME).items() if _is_part(value)]
            found = [name for name in parts if (folder / name / CONFIG_NAME).is_file()]
            if not found:
                raise SettingsError(f"model.path: {folder} is a pipeline without a model")
            return {name: make(folder / name) for name in found}
        require_model(folder)
        return make(folder)


def _read(path: Path) -> Json:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(f"model.path: {path} is no JSON object")
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
    kind = _class(folder)
    with torch.device("meta"):
        if issubclass(kind, PreTrainedModel):
            model: nn.Module = kind(read_config(folder))
        else:
            model = cast(_DiffusersClass, kind).from_config(_read(folder / CONFIG_NAME))
    return without_memory(nn.Module.to(model, dtype))


def _load(folder: Path, dtype: torch.dtype) -> nn.Module:
    kind = _class(folder)
    if issubclass(kind, PreTrainedModel):
        disable_progress_bar()
        model: nn.Module = read_weights(kind, folder, dtype)
    else:
        model = cast(_DiffusersClass, kind).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
    return nn.Module.eval(model).requires_grad_(False)


def _class(folder: Path) -> type[nn.Module]:
    """Return the class of a model in diffusers or transformers."""
    config = _read(folder / CONFIG_NAME)
    library, name = "diffusers", config.get("_class_name")
    if name is None:
        names = config.get("architectures")
        library, name = "transformers", names[0] if isinstance(names, list) and names else None
    kind = getattr(importlib.import_module(library), str(name), None)  # one of them, as it is slow
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ModelError(f"model.path: {folder} is a {name!r}, which is no model of {library}")
    return kind

"""Models of transformers in a folder: reading them, and what is said of those that cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lokr_serve.errors import ModelError, SettingsError

CONFIG_NAME = "config.json"

# What the libraries raise for files that are missing, malformed, or not of one model.
_READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def reading(path: Path, refusal: type[ModelError | SettingsError]) -> Iterator[None]:
    """Turn what the libraries raise for a file or folder into an error that names it."""
    try:
        yield
    except _READ_ERRORS as error:
        lines = [line.strip() for line in str(error).split("\n")[:2]]  # the first may be a title
        problem = " ".join(lines)
        raise refusal(f"model.path: {path} cannot be loaded: {problem}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a model of transformers.

    Raises:
        SettingsError: The folder holds none that can be read.
    """
    require_model(folder)
    with reading(folder / CONFIG_NAME, SettingsError):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    return config


def require_model(folder: Path) -> None:
    """Check that a folder may be one of a model.

    Raises:
        SettingsError: It has no configuration.
    """
    if not (folder / CONFIG_NAME).is_file():
        raise SettingsError(f"model.path: {folder} is not a model folder: it has no {CONFIG_NAME}")


def read_weights(
    kind: type[AutoModelForCausalLM | PreTrainedModel], folder: Path, dtype: torch.dtype | str
) -> PreTrainedModel:
    """Return a model of transformers with its weights, on the CPU; takes long.

    Args:
        kind: Its class.
        folder: The folder that it is in.
        dtype: Of the weights; "auto" is that of their files.

    Raises:
        ModelError: It cannot be loaded, or its files lack weights.
    """
    with reading(folder, ModelError):
        loaded: object = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model.path: {folder} lacks {len(missing)} weights, such as {missing[0]!r}"
        )
    return model

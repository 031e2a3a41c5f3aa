"""Models of transformers in a folder: reading them, and what is said of those that cannot be."""

from collections.abc import Iterable, Iterator
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
    ImportError,  # a package that reads them is not installed
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


def find_device(name: str) -> torch.device:
    """Return the device that the settings name; "auto" is a GPU if there is one.

    Raises:
        SettingsError: There is no such device, or models are not served on it.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(
            f"model.device: {name!r} is not one device, such as cpu or cuda:0; "
            "a model spread over several is not served"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"model.device: {name!r} is not served; use cpu or cuda")
    if device.type == "cuda" and not (has_gpu and (device.index or 0) < torch.cuda.device_count()):
        raise SettingsError(f"model.device: this machine has no device {name!r}")
    return device


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
    kind: type[AutoModelForCausalLM | PreTrainedModel],
    folder: Path,
    dtype: torch.dtype | str,
    variant: str | None = None,
) -> PreTrainedModel:
    """Return a model of transformers with its weights, on the CPU; takes long.

    Args:
        kind: Its class.
        folder: The folder that it is in.
        dtype: Of the weights; "auto" is that of their files.
        variant: The word in the names of its files, such as fp16; None for the plain ones.

    Raises:
        ModelError: It cannot be loaded, or its files lack weights.
    """
    with reading(folder, ModelError):
        loaded: object = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
        )
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    require_complete(folder, report["missing_keys"])
    return model


def require_complete(folder: Path, missing_keys: Iterable[str]) -> None:
    """Check that nothing of a model would be left as it happened to be made.

    Raises:
        ModelError: Its files lack weights.
    """
    missing = sorted(missing_keys)
    if missing:
        raise ModelError(
            f"model.path: {folder} lacks {len(missing)} weights, such as {missing[0]!r}"
        )

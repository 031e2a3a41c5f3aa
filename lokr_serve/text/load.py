"""Loading the base model from a folder; nothing is ever downloaded."""

from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lokr_serve.config import ModelSettings
from lokr_serve.errors import ModelError, SettingsError
from lokr_serve.text.demands import require_served_attention


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """Return the base model, ready for inference on its device; takes long.

    Raises:
        SettingsError: The folder holds no causal language model, or the device is not there.
        ModelError: The model cannot be loaded, or not be served.
    """
    device = _device(settings.device)
    _require_causal(settings.path, _read_config(settings.path))
    model = _read_model(settings)
    nn.Module.eval(nn.Module.to(model, device)).requires_grad_(False)
    require_served_attention(model)
    return model


def _device(name: str) -> torch.device:
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


def _read_config(path: Path) -> PreTrainedConfig:
    if not (path / "config.json").is_file():
        raise SettingsError(f"model.path: {path} is not a model folder: it has no config.json")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(
            f"model.path: {path}/config.json cannot be read: {_first_line(error)}"
        ) from error
    return config


def _require_causal(path: Path, config: PreTrainedConfig) -> None:
    """Refuse what would only be a language model after training a new head for it."""
    served = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    names = (served,) if isinstance(served, str) else served
    if not names or (config.architectures and not set(config.architectures) & set(names)):
        raise SettingsError(
            f"model.path: {path} is not a causal language model: its type is "
            f"{config.model_type!r} and its architecture {config.architectures}"
        )


def _read_model(settings: ModelSettings) -> PreTrainedModel:
    try:
        loaded: object = AutoModelForCausalLM.from_pretrained(
            settings.path, dtype=settings.dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"model.path: {settings.path} cannot be loaded: {_first_line(error)}"
        ) from error
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model.path: {settings.path} lacks {len(missing)} weights, such as {missing[0]!r}"
        )
    return model


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]

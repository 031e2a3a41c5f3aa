"""Loading the base model from a folder; nothing is ever downloaded."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lokr_serve.config import ModelSettings
from lokr_serve.errors import SettingsError
from lokr_serve.pretrained import read_config, read_weights
from lokr_serve.text.demands import require_served_attention


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """Return the base model, ready for inference on its device; takes long.

    Raises:
        SettingsError: The folder holds no causal language model, or the device is not there.
        ModelError: The model cannot be loaded, or not be served.
    """
    device = _device(settings.device)
    _require_causal(settings.path, read_config(settings.path))
    model = read_weights(AutoModelForCausalLM, settings.path, settings.dtype)
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


def _require_causal(path: Path, config: PreTrainedConfig) -> None:
    """Refuse what would only be a language model after training a new head for it."""
    served = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    names = (served,) if isinstance(served, str) else served
    if not names or (config.architectures and not set(config.architectures) & set(names)):
        raise SettingsError(
            f"model.path: {path} is not a causal language model: its type is "
            f"{config.model_type!r} and its architecture {config.architectures}"
        )

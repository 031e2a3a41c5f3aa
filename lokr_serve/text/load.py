"""Loading the base model from a folder; nothing is ever downloaded."""

from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lokr_serve.config import ModelSettings
from lokr_serve.errors import SettingsError
from lokr_serve.pretrained import find_device, read_config, read_weights
from lokr_serve.text.demands import require_served_attention


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """Return the base model, ready for inference on its device; takes long.

    Raises:
        SettingsError: The folder holds no causal language model, or the device is not there.
        ModelError: The model cannot be loaded, or not be served.
    """
    device = find_device(settings.device)
    _require_causal(settings.path, read_config(settings.path))
    model = read_weights(AutoModelForCausalLM, settings.path, settings.dtype)
    nn.Module.eval(nn.Module.to(model, device)).requires_grad_(False)
    require_served_attention(model)
    return model


def _require_causal(path: Path, config: PreTrainedConfig) -> None:
    """Refuse what would only be a language model after training a new head for it."""
    served = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    names = (served,) if isinstance(served, str) else served
    if not names or (config.architectures and not set(config.architectures) & set(names)):
        raise SettingsError(
            f"model.path: {path} is not a causal language model: its type is "
            f"{config.model_type!r} and its architecture {config.architectures}"
        )

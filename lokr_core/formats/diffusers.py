"""PEFT's configurations in the metadata of files that diffusers writes, one for each component."""

from collections.abc import Mapping

from lokr_core.errors import AdapterConfigError
from lokr_core.formats.peft import PeftConfig, config_of
from lokr_core.formats.strict_json import parse_json

METADATA_KEY = "lora_adapter_metadata"
_ANY_COMPONENT = ""


def metadata_configs(metadata: Mapping[str, str]) -> Mapping[str, PeftConfig]:
    """Return the configurations of a file's metadata by component; ``""`` stands for any.

    A pipeline's fields start with the component's name (``transformer.r``); those of a single
    model do not.

    Raises:
        AdapterConfigError: They are malformed, or set a field whose effect is not served.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        fields = parse_json(metadata[METADATA_KEY].encode())
    except ValueError as error:
        raise AdapterConfigError(METADATA_KEY, str(error)) from error
    if not isinstance(fields, dict):
        raise AdapterConfigError(METADATA_KEY, "is no JSON object")
    by_component: dict[str, dict[str, object]] = {}
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        by_component.setdefault(component, {"peft_type": "LORA"})[field] = value
    return {name: config_of(parts, METADATA_KEY, name) for name, parts in by_component.items()}


def config_for(configs: Mapping[str, PeftConfig], path: str) -> PeftConfig | None:
    """Return the configuration of the module at a path that starts with its component."""
    for component, config in configs.items():
        if component and path.startswith(f"{component}."):
            return config
    return configs.get(_ANY_COMPONENT)

"""TrainerNotes: what a LyCORIS trainer wrote of itself into the metadata of a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lokr_core.formats.strict_json import parse_json

# LyCORIS's own presets: none of them gives a module another dimension.
_PRESETS = frozenset(
    {
        "full",
        "full-lin",
        "attn-mlp",
        "attn-only",
        "unet-only",
        "unet-transformer-only",
        "unet-convblock-only",
        "ia3",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerNotes:
    """What metadata tells that changes a scale; what is missing or malformed tells nothing."""

    dim: float | None = None  # the dimension that alpha was divided by
    conv_dim: float | None = None  # the same of convolutions with a kernel, if it is another
    has_own_dims: bool = False  # whether a preset may have given some modules another dimension
    is_bypass: bool = False
    rs_alpha: float | None = None  # what alpha was set to, if it was to be over the root of dim

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "TrainerNotes":
        """Return the notes in the metadata of a file."""
        config = _json_object(metadata.get("lycoris_config", ""))
        arguments = _json_object(metadata.get("ss_network_args", ""))
        is_rs = arguments.get("rs_lora") == "True"
        rs_alpha = _positive(metadata.get("ss_network_alpha")) if is_rs else None
        is_bypass = config.get("bypass_mode") is True
        if metadata.get("ss_network_module", "").startswith("lycoris"):
            return cls(
                dim=_dimension(metadata.get("ss_network_dim")),
                conv_dim=_dimension(arguments.get("conv_dim")),
                has_own_dims=_sets_dims(arguments.get("preset")),
                is_bypass=is_bypass,
                rs_alpha=rs_alpha,
            )
        return cls(
            dim=_dimension(config.get("linear_dim")),
            conv_dim=_dimension(config.get("conv_dim")),
            has_own_dims=_sets_dims(config.get("apply_preset")),
            is_bypass=is_bypass,
            rs_alpha=rs_alpha,
        )

    def dim_of(self, kernel: tuple[int, ...]) -> float | None:
        """Return the dimension of a module with a kernel, by LyCORIS's own rule."""
        has_kernel = bool(kernel) and kernel[0] != 1
        return self.conv_dim or self.dim if has_kernel else self.dim


def _sets_dims(preset: object) -> bool:
    """Return whether a preset, given whole or by name, may set dimensions of modules."""
    if preset is None:
        return False
    if not isinstance(preset, dict):
        return not isinstance(preset, str) or preset not in _PRESETS
    maps = [preset.get(name) for name in ("module_algo_map", "name_algo_map")]
    options = [option for found in maps if isinstance(found, dict) for option in found.values()]
    return any(isinstance(option, dict) and "dim" in option for option in options)


def _json_object(text: str) -> dict[str, object]:
    try:
        value = parse_json(text.encode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _dimension(value: object) -> float | None:
    number = _positive(value)
    return number if number is not None and number >= 1 else None


def _positive(value: object) -> float | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None

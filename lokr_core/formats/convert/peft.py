"""PEFT's layout: an adapter_config.json that tells the scale, and tensors by module path."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.modules import SourceModule, is_scrambled
from lokr_core.formats.convert.peft_config import Json, peft_type, scale_fields
from lokr_core.formats.names import PEFT_WRAPPER
from lokr_core.spec import ModelSpec, ModuleKind

_SUFFIXES = {
    "lora_down": "lora_A.weight",
    "lora_up": "lora_B.weight",
    "lora_up_bias": "lora_B.bias",
}
_SAVED = frozenset(["weight", "bias"])
_ROUNDED_DORA = "LyCORIS's DoRA adds an epsilon to the norm, as PEFT's does not"
_UNKNOWN = {
    "dora_scale": _ROUNDED_DORA,
    "lora_mid": "PEFT's LoRA has no Tucker core",
    "diff": "PEFT has no full deltas",
    "diff_b": "PEFT has no bias deltas",
    "w_norm": "PEFT has no norm deltas",
    "b_norm": "PEFT has no norm deltas",
    "bias_indices": "PEFT has no sparse deltas",
    "base_weight": "a base weight that is replaced below a delta is not written",
    "base_bias": "a base bias that is replaced below a delta is not written",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeftFiles:
    """What lies in a folder of PEFT."""

    tensors: Mapping[str, Tensor]
    config: str  # JSON


def peft_files(modules: Sequence[SourceModule], spec: ModelSpec) -> PeftFiles:
    """Return PEFT's tensors and configuration.

    Raises:
        ConversionError: PEFT has no exact form of a module, or none of all of them together.
    """
    for module in modules:
        _check(module, spec)
    saved = [module for module in modules if _SAVED & module.leaves.keys()]
    changed = [module for module in modules if module not in saved]
    if not changed:
        raise ConversionError(modules[0].path, "PEFT has no adapter of replaced modules alone")
    config = {**_common(changed, saved, spec), **scale_fields(changed)}
    tensors = {
        f"{PEFT_WRAPPER}{module.path}.{_SUFFIXES.get(leaf, leaf)}": _in_shape(leaf, tensor, module)
        for module in modules
        for leaf, tensor in module.leaves.items()
    }
    return PeftFiles(tensors=tensors, config=json.dumps(config, indent=2, sort_keys=True))


def _check(module: SourceModule, spec: ModelSpec) -> None:
    if "" not in spec.components:
        raise ConversionError(
            module.path, "PEFT's adapters are of one model; give the folder of that component"
        )
    for leaf, reason in _UNKNOWN.items():
        if module.has(leaf):
            raise ConversionError(module.path, reason)
    if _SAVED & module.leaves.keys():
        return
    kind = peft_type(module)
    if kind != "LORA" and (
        module.spec.kind not in (ModuleKind.LINEAR, ModuleKind.CONV) or len(module.spec.kernel) > 2
    ):
        raise ConversionError(module.path, f"PEFT has no {kind} for such a layer")
    if is_scrambled(module) and not module.is_peft:
        raise ConversionError(
            module.path, "PEFT makes another matrix of a full lokr_w2 of a Conv1d than its trainer"
        )


def _in_shape(leaf: str, tensor: Tensor, module: SourceModule) -> Tensor:
    """Return a tensor in PEFT's shape, which has a core of four dimensions for a Conv1d too."""
    is_core = leaf in ("lokr_t2", "hada_t1", "hada_t2")
    return tensor[..., None] if is_core and tensor.ndim == 3 else tensor


def _common(
    changed: Sequence[SourceModule], saved: Sequence[SourceModule], spec: ModelSpec
) -> Json:
    """Return the fields that all of PEFT's configurations have."""
    kinds = {peft_type(module): module.path for module in changed}
    if len(kinds) > 1:
        raise ConversionError(
            changed[-1].path, f"a file of PEFT has one algorithm, and this has {', '.join(kinds)}"
        )
    return {
        "peft_type": next(iter(kinds)),
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "task_type": None,
        "inference_mode": True,
        "target_modules": _targets([module.path for module in changed], spec),
        "exclude_modules": None,
        "modules_to_save": [module.path for module in saved] or None,
    }


def _targets(paths: Sequence[str], spec: ModelSpec) -> list[str] | str:
    """Return names that PEFT finds these modules by, and no others of the base."""
    suffixes = tuple(f".{path}" for path in paths)
    if any(path.endswith(suffixes) for path in spec.modules):
        return "|".join(map(re.escape, paths))
    return sorted(paths)

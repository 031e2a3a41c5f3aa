"""PEFT's layout: an adapter_config.json that tells the scale, and tensors by module path."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.modules import SourceModule, is_scrambled
from lokr_core.formats.convert.peft_config import Json, peft_type, scale_fields
from lokr_core.formats.convert.scale import Leaves
from lokr_core.formats.names import PEFT_WRAPPER
from lokr_core.spec import ModelSpec, ModuleKind

_SUFFIXES = {
    "lora_down": "lora_A.weight",
    "lora_up": "lora_B.weight",
    "lora_up_bias": "lora_B.bias",
    "base_weight": "base_layer.weight",
    "base_bias": "base_layer.bias",
}
_ROUNDED_DORA = "LyCORIS's DoRA adds an epsilon to the norm, as PEFT's does not"
_UNKNOWN = {
    "dora_scale": _ROUNDED_DORA,
    "lora_mid": "PEFT's LoRA has no Tucker core",
    "diff": "PEFT has no full deltas",
    "diff_b": "PEFT has no bias deltas",
    "w_norm": "PEFT has no norm deltas",
    "b_norm": "PEFT has no norm deltas",
    "bias_indices": "PEFT has no sparse deltas",
}


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


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
    changed = [module for module in modules if not _is_replaced(module)]
    if not changed:
        raise ConversionError(modules[0].path, "PEFT has no adapter of replaced modules alone")
    config = {**_common(modules, changed, spec), **scale_fields(changed)}
    if config["peft_type"] == "LORA":
        config["bias"] = _trained_biases(modules)
    tensors = {
        f"{PEFT_WRAPPER}{module.path}.{_SUFFIXES.get(leaf, leaf)}": _in_shape(leaf, tensor)
        for module in modules
        for leaf, tensor in _leaves(module).items()
    }
    return PeftFiles(tensors=tensors, config=json.dumps(config, indent=2, sort_keys=True))


def _is_replaced(module: SourceModule) -> bool:
    return module.has("weight", "bias")


def _leaves(module: SourceModule) -> Leaves:
    """Return the leaves of a module, those of an embedding by PEFT's own names."""
    up, down = module.leaves.get("lora_up"), module.leaves.get("lora_down")
    if module.spec.kind is not ModuleKind.EMBEDDING or up is None or down is None:
        return module.leaves
    return {"lora_embedding_A": up.mT, "lora_embedding_B": down.mT}


def _trained_biases(modules: Sequence[SourceModule]) -> str:
    if any(module.has("bias") and not module.has("weight") for module in modules):
        return "all"
    return "lora_only" if any(module.has("base_bias") for module in modules) else "none"


def _check(module: SourceModule, spec: ModelSpec) -> None:
    if "" not in spec.components:
        raise ConversionError(
            module.path, "PEFT's adapters are of one model; give the folder of that component"
        )
    for leaf, reason in _UNKNOWN.items():
        if module.has(leaf):
            raise ConversionError(module.path, reason)
    if not _is_replaced(module):
        _check_layer(module, peft_type(module))


def _check_layer(module: SourceModule, kind: str) -> None:
    """Refuse a layer for which PEFT has no such algorithm, or has it wrong."""
    layer, spec = module.spec.module, module.spec
    if kind == "LORA":
        if isinstance(layer, _Convolution) and (layer.groups > 1 or set(layer.dilation) != {1}):
            problem = "PEFT's LoRA passes over the groups and the dilation of a convolution"
            raise ConversionError(module.path, problem)
        return
    if spec.kind not in (ModuleKind.LINEAR, ModuleKind.CONV) or len(spec.kernel) > 2:
        raise ConversionError(module.path, f"PEFT has no {kind} for {type(layer).__name__}")
    if module.has("base_weight", "base_bias"):
        raise ConversionError(module.path, f"PEFT replaces nothing below a {kind}")
    if is_scrambled(module) and not module.is_peft:
        raise ConversionError(
            module.path, "PEFT makes another matrix of a full lokr_w2 of a Conv1d than its trainer"
        )
    _check_core(module)


def _check_core(module: SourceModule) -> None:
    """Refuse a Tucker core that PEFT has no place for, or that its forward cannot use."""
    core = module.leaves.get("lokr_t2", module.leaves.get("hada_t1"))
    if core is None:
        return
    if math.prod(module.spec.kernel) == 1:
        raise ConversionError(module.path, "PEFT has no Tucker core for a window of size 1")
    last = (*module.spec.kernel, 1)[1]  # PEFT has a second size for a Conv1d too
    if module.has("lokr_t2") and core.shape[0] == last == 1:
        raise ConversionError(
            module.path,
            "PEFT's forward fails for a LoKr with a Tucker core of rank 1 over a Conv1d, or over a "
            "window whose last size is 1",
        )


def _in_shape(leaf: str, tensor: Tensor) -> Tensor:
    """Return a tensor in PEFT's shape, which has a core of four dimensions for a Conv1d too."""
    is_core = leaf in ("lokr_t2", "hada_t1", "hada_t2")
    return tensor[..., None] if is_core and tensor.ndim == 3 else tensor


def _common(
    modules: Sequence[SourceModule], changed: Sequence[SourceModule], spec: ModelSpec
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
        "modules_to_save": [module.path for module in modules if module.has("weight")] or None,
    }


def _targets(paths: Sequence[str], spec: ModelSpec) -> list[str] | str:
    """Return names that PEFT finds these modules by, and no others of the base."""
    suffixes = tuple(f".{path}" for path in paths)
    if any(path.endswith(suffixes) for path in spec.modules):
        return "|".join(map(re.escape, paths))
    return sorted(paths)

"""A base model that a file alone gives: modules by its own names, in the sizes of its tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lokr_core.errors import UnsupportedModuleError
from lokr_core.formats.header import MAX_ELEMENTS
from lokr_core.formats.leaves import split_key
from lokr_core.formats.names import PEFT_WRAPPER
from lokr_core.spec import ModelSpec, ModuleKind, ModuleSpec

Leaves = Mapping[str, Tensor]
_VALUE = 0.7236  # of every parameter; no trained one, nor a new one, has it throughout
_WINDOWS = ("lokr_t2", "hada_t1", "lora_mid", "lokr_w2", "lora_down", "hada_w1_b", "diff", "weight")


def file_base(tensors: Mapping[str, Tensor]) -> ModelSpec:
    """Return a base that a file fits; its weights have one value and take no memory.

    What only a real base can tell is not to be read off it: names of other spellings, sizes that do
    not fit, DoRA's gains.

    Raises:
        UnsupportedModuleError: Factors multiply out to a weight larger than any.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parts = split_key(key)
        if parts is not None:
            name = parts.module.removeprefix(PEFT_WRAPPER)
            found.setdefault(name, {}).setdefault(parts.leaf, tensor)
    specs = {name: _spec(name, leaves) for name, leaves in found.items()}
    return ModelSpec(modules=specs, dtype=torch.float32)


def without_memory(module: nn.Module) -> nn.Module:
    """Give the parameters of a module of the meta device a value that takes no memory.

    What replaces a parameter is never taken to equal it.
    """
    replaced: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.tensor(_VALUE, dtype=parameter.dtype).expand(parameter.shape)
                new = replaced.setdefault(id(parameter), nn.Parameter(value, requires_grad=False))
                part.register_parameter(name, new)
    return module


def _spec(path: str, leaves: Leaves) -> ModuleSpec:
    kind, module = _module(path, leaves)
    return ModuleSpec(path=path, kind=kind, module=without_memory(module))


def _module(path: str, leaves: Leaves) -> tuple[ModuleKind, nn.Module]:
    vector = next((leaves[leaf] for leaf in ("w_norm", "weight", "diff") if leaf in leaves), None)
    if vector is not None and vector.ndim == 1:
        return ModuleKind.NORM, nn.LayerNorm(len(vector), device="meta")
    if "lora_embedding_A" in leaves and "lora_embedding_B" in leaves:
        num_tokens, size = _last(leaves["lora_embedding_A"]), _first(leaves["lora_embedding_B"])
        _require_countable(path, num_tokens, size)
        return ModuleKind.EMBEDDING, nn.Embedding(num_tokens, size, device="meta")
    num_out, columns = _matrix(leaves)
    kernel = _kernel(leaves, num_out, columns)
    num_in = max(1, columns // math.prod(kernel))
    _require_countable(path, num_out, num_in * math.prod(kernel))
    match kernel:
        case (k,):
            return ModuleKind.CONV, nn.Conv1d(num_in, num_out, k, device="meta")
        case (k, n):
            return ModuleKind.CONV, nn.Conv2d(num_in, num_out, (k, n), device="meta")
        case (k, n, m):
            return ModuleKind.CONV, nn.Conv3d(num_in, num_out, (k, n, m), device="meta")
        case _:
            return ModuleKind.LINEAR, nn.Linear(num_in, num_out, bias=False, device="meta")


def _require_countable(path: str, num_out: int, columns: int) -> None:
    """Check that the elements of a weight can be counted; small factors can make a huge one."""
    if num_out * columns > MAX_ELEMENTS:
        raise UnsupportedModuleError(path, f"no weight is {num_out} x {columns}, as its delta is")


def _matrix(leaves: Leaves) -> tuple[int, int]:
    """Return outputs and columns of a module's delta; 1 for what cannot be known."""
    if any(leaf.startswith("lokr_") for leaf in leaves):
        (o1, i1), (o2, i2) = _sizes(leaves, "lokr_w1", None), _sizes(leaves, "lokr_w2", "lokr_t2")
        return o1 * o2, i1 * i2
    if any(leaf.startswith("hada_") for leaf in leaves):
        return _sizes(leaves, "hada_w1", "hada_t1")
    if "lora_up" in leaves and "lora_down" in leaves:
        window = leaves["lora_mid"].shape[2:].numel() if "lora_mid" in leaves else 1
        return _first(leaves["lora_up"]), _columns(leaves["lora_down"]) * window
    whole = next((leaves[leaf] for leaf in ("diff", "weight") if leaf in leaves), None)
    if whole is not None:
        return _first(whole), _columns(whole)
    bias = next((leaves[leaf] for leaf in ("diff_b", "bias") if leaf in leaves), None)
    return (1 if bias is None else _first(bias)), 1


def _sizes(leaves: Leaves, name: str, core: str | None) -> tuple[int, int]:
    """Return rows and columns of a factor that is whole, low-rank, or has a Tucker core."""
    if name in leaves:
        return _first(leaves[name]), _columns(leaves[name])
    a, b = leaves.get(f"{name}_a"), leaves.get(f"{name}_b")
    if a is None or b is None:
        return 1, 1
    if core is not None and core in leaves:
        return _last(a), _last(b) * leaves[core].shape[2:].numel()
    return _first(a), _columns(b)


def _kernel(leaves: Leaves, num_out: int, columns: int) -> tuple[int, ...]:
    for leaf in _WINDOWS:
        if leaf in leaves and leaves[leaf].ndim > 2:
            return tuple(max(1, size) for size in leaves[leaf].shape[2:])
    magnitude = leaves.get("dora_scale")
    if magnitude is None or magnitude.ndim < 3:
        return ()
    # The factors were flattened, so of the window only the size is left, if that.
    is_input = magnitude.shape[0] == 1 and num_out != 1
    window = max(1, columns // max(1, magnitude.shape[1])) if is_input else 1
    return (window, *[1] * (magnitude.ndim - 3))


def _first(tensor: Tensor) -> int:
    return max(1, tensor.shape[0]) if tensor.ndim else 1


def _last(tensor: Tensor) -> int:
    return max(1, tensor.shape[-1]) if tensor.ndim else 1


def _columns(tensor: Tensor) -> int:
    return max(1, tensor.shape[1:].numel())

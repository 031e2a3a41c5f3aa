"""Which modules of a base model can carry adapters, and under which paths."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from lokr_core.errors import LokrError
from lokr_core.ops.geometry import CONV_TYPES, Conv
from lokr_core.spec import ModelSpec, ModuleKind, ModuleSpec

Model = nn.Module | Mapping[str, nn.Module]


def components(model: object) -> dict[str, nn.Module]:
    """Return the modules of a model by component name; a single module has the name ``""``.

    Args:
        model: A module, a mapping of modules, or a diffusers pipeline.

    Raises:
        LokrError: The object is none of these.
    """
    if isinstance(model, nn.Module):
        return {"": model}
    parts = model if isinstance(model, Mapping) else getattr(model, "components", None)
    if not isinstance(parts, Mapping):
        raise LokrError(f"cannot attach to {type(model).__name__}: not a module or a pipeline")
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


_KINDS: tuple[tuple[type[nn.Module], ModuleKind], ...] = (
    (nn.Linear, ModuleKind.LINEAR),
    (nn.Conv1d, ModuleKind.CONV),
    (nn.Conv2d, ModuleKind.CONV),
    (nn.Conv3d, ModuleKind.CONV),
    (nn.Embedding, ModuleKind.EMBEDDING),
    (nn.LayerNorm, ModuleKind.NORM),
    (nn.GroupNorm, ModuleKind.NORM),
)


def module_kind(module: nn.Module) -> ModuleKind | None:
    """Return what a module does with its weight, or None if adapters cannot change it."""
    for kind, found in _KINDS:
        if isinstance(module, kind):
            has_weight = isinstance(module.weight, Tensor)
            is_flat = found is not ModuleKind.NORM or (has_weight and module.weight.ndim == 1)
            return found if has_weight and is_flat else None
    kind = type(module)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return ModuleKind.CONV1D
    parameters = dict(module.named_parameters())
    is_norm = kind.__name__.endswith("RMSNorm") and list(parameters) == ["weight"]
    return ModuleKind.NORM if is_norm and parameters["weight"].ndim == 1 else None


# Modules whose weight their parent uses without their forward.
_BYPASSED: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.MultiheadAttention, ("out_proj",)),
    # Its fast path, in evaluation.
    (nn.TransformerEncoderLayer, ("linear1", "linear2", "norm1", "norm2")),
)

# Layers of state space models, whose fast paths do so with a convolution.
_BYPASS_CONVOLUTIONS = re.compile("[BM]amba|GatedDeltaNet|ShortConv")


def _refusals(component: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each module that cannot be routed, and why."""
    for path, module in component.named_modules():
        if module_kind(module) is not None and not _takes_one_input(module):
            yield path, f"{type(module).__name__} takes more than the one input of its kind"
        if module_kind(module) is not None and "weight" not in module._parameters:
            yield path, "its weight is computed from other parameters, or is none of its own"
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            yield path, "with max_norm an embedding writes to its weight at each use"
        if isinstance(module, CONV_TYPES) and not _is_plain_conv(module):
            yield path, f"{type(module).__name__} computes more than a convolution"
        if isinstance(module, nn.Linear) and not _is_product(module):
            yield path, f"{type(module).__name__} computes more than a product"
        for name in _bypassed(module):
            reason = f"{type(module).__name__} uses its weight without calling it"
            yield f"{path}.{name}".removeprefix("."), reason


def _bypassed(parent: nn.Module) -> Iterator[str]:
    """Yield the names of children whose weight a module uses without their forward."""
    for kind, names in _BYPASSED:
        if isinstance(parent, kind):
            yield from names
    if _BYPASS_CONVOLUTIONS.search(type(parent).__name__):
        for name, child in parent.named_children():
            if isinstance(child, CONV_TYPES):
                yield name


def _takes_one_input(module: nn.Module) -> bool:
    """Whether rows can be told from the inputs; a table of positions, say, may take more."""
    parameters = inspect.signature(type(module).forward).parameters
    return len(parameters) == 2  # the module itself is the first


# Whose forward is a product in other words.
_PRODUCTS = ("FalconLinear",)


def _is_product(linear: nn.Linear) -> bool:
    """Whether a linear module is linear in its weight; a packed weight has a forward of its own."""
    kind = type(linear)
    if kind.forward is nn.Linear.forward or kind.__name__ in _PRODUCTS:
        return True
    return ModuleSpec(path="", kind=ModuleKind.LINEAR, module=linear).is_quantized


def _is_plain_conv(conv: Conv) -> bool:
    """Whether a convolution is linear in its weight, as the classes of torch are."""
    plain = next(kind for kind in CONV_TYPES if isinstance(conv, kind))
    return type(conv).forward is plain.forward


def _joined(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _wholly_refused(prefix: str, component: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each module that is of no kind and that a trainer may change, and why."""
    for path, module in component.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = f"{type(module).__name__} has its projections as parameters, not as modules"
            yield _joined(prefix, path), reason


def _module_specs(prefix: str, component: nn.Module) -> Iterator[ModuleSpec]:
    refusals = dict(_refusals(component))
    for path, module in component.named_modules():
        kind = module_kind(module)
        if kind is None:
            continue
        yield ModuleSpec(
            path=_joined(prefix, path),
            kind=kind,
            module=module,
            refusal=refusals.get(path),
        )


def discover(model: object) -> ModelSpec:
    """Return the modules of ``model`` that adapters can change.

    Args:
        model: An nn.Module, a pipeline, or modules by name.

    Raises:
        LokrError: The object is no model, or has no linear module.
    """
    parts = components(model)
    specs = {
        spec.path: spec
        for name, component in parts.items()
        for spec in _module_specs(name, component)
    }
    refusals = (_wholly_refused(name, component) for name, component in parts.items())
    return ModelSpec(
        modules=specs,
        dtype=_dtype(specs.values()),
        components=tuple(parts),
        refusals=dict(chain.from_iterable(refusals)),
    )


def _dtype(specs: Iterable[ModuleSpec]) -> torch.dtype:
    """Return the widest dtype of the weights that products read; packed ones tell nothing."""
    weighted = [spec for spec in specs if spec.kind.is_linear or spec.kind is ModuleKind.CONV]
    if not weighted:
        raise LokrError("the model has no linear module that an adapter could change")
    dtypes = [spec.parameter.dtype for spec in weighted if not spec.is_quantized]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)

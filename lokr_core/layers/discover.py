"""Which modules of a base model can carry adapters, and under which paths."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from lokr_core.errors import LokrError
from lokr_core.spec import LinearKind, ModelSpec, ModuleSpec

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


def linear_kind(module: nn.Module) -> LinearKind | None:
    """Return how a module stores a linear weight, or None if it is no linear module."""
    if isinstance(module, nn.Linear):
        return LinearKind.LINEAR
    kind = type(module)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        return LinearKind.CONV1D
    return None


# Linear modules whose weight their parent uses without their forward.
_BYPASSED: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.MultiheadAttention, ("out_proj",)),
    (nn.TransformerEncoderLayer, ("linear1", "linear2")),  # its fast path, in evaluation
)


def _refusals(component: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each linear module that cannot be routed, and why."""
    for path, module in component.named_modules():
        for kind, names in _BYPASSED:
            if isinstance(module, kind):
                for name in names:
                    reason = f"nn.{kind.__name__} uses its weight without calling it"
                    yield f"{path}.{name}".removeprefix("."), reason


def _module_specs(prefix: str, component: nn.Module) -> Iterator[ModuleSpec]:
    refusals = dict(_refusals(component))
    for path, module in component.named_modules():
        kind = linear_kind(module)
        if kind is None:
            continue
        yield ModuleSpec(
            path=f"{prefix}.{path}" if prefix and path else prefix or path,
            kind=kind,
            module=module,
            refusal=refusals.get(path),
        )


def discover(model: object) -> ModelSpec:
    """Return the linear modules of ``model``: an nn.Module, a pipeline, or modules by name.

    Raises:
        LokrError: The object is no model, or has no linear module.
    """
    specs = {
        spec.path: spec
        for name, component in components(model).items()
        for spec in _module_specs(name, component)
    }
    if not specs:
        raise LokrError("the model has no linear module that an adapter could change")
    dtypes = {spec.module.weight.dtype for spec in specs.values()}
    floating = [dtype for dtype in dtypes if isinstance(dtype, torch.dtype)]
    return ModelSpec(modules=specs, dtype=max(floating, key=lambda dtype: dtype.itemsize))

"""LyCORIS's layout: one flat name for a module, and nothing that LyCORIS does not know."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from lokr_core.formats.convert.canonical import SUFFIXES, check_plain
from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.modules import SourceModule, is_both_full
from lokr_core.formats.convert.scale import Leaves, alpha_for, alpha_tensor, folded, rank_of
from lokr_core.spec import ModuleKind

_UNKNOWN = {
    "lora_magnitude_vector": "PEFT's DoRA adds no epsilon to the norm, as LyCORIS's does",
    "lora_up_bias": "LyCORIS has no bias beside a low-rank factor",
    "weight": "LyCORIS has no replaced parameters, and a difference would be rounded",
    "bias": "LyCORIS has no replaced parameters, and a difference would be rounded",
    "base_weight": "LyCORIS has no replaced parameters, and a difference would be rounded",
    "base_bias": "LyCORIS has no replaced parameters, and a difference would be rounded",
}
_SCALED = ("lokr_", "hada_", "lora_")
_PREFIXES = {
    "": "lycoris_",
    "unet": "lora_unet_",
    "transformer": "lora_unet_",
    "prior": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
    "text_encoder_3": "lora_te3_",
}


def lycoris_tensors(
    modules: Sequence[SourceModule], components: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors of a LyCORIS file by key.

    Args:
        modules: The modules.
        components: What paths of the base start with; a single module has the name "".

    Raises:
        ConversionError: A module has no exact form, or two have one flat name.
    """
    tensors: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for module in modules:
        name = _flat_name(module.path, components)
        if name in owners:
            problem = f"has the flat name {name!r}, and so has {owners[name]!r}"
            raise ConversionError(module.path, problem)
        owners[name] = module.path
        for leaf, tensor in _leaves(module):
            tensors[f"{name}.{SUFFIXES.get(leaf, leaf)}"] = tensor
    return tensors


def _flat_name(path: str, components: Sequence[str]) -> str:
    component = "" if "" in components else path.partition(".")[0]
    if component not in _PREFIXES:
        raise ConversionError(path, f"LyCORIS has no name for component {component!r}")
    inner = path.removeprefix(f"{component}.") if component else path
    return _PREFIXES[component] + inner.replace(".", "_")


def _leaves(module: SourceModule) -> Iterator[tuple[str, Tensor]]:
    check_plain(module)
    if module.spec.kind in (ModuleKind.CONV1D, ModuleKind.EMBEDDING):
        problem = f"LyCORIS changes no module of the kind {module.spec.kind.value!r}"
        raise ConversionError(module.path, problem)
    for leaf, reason in _UNKNOWN.items():
        if module.has(leaf):
            raise ConversionError(module.path, reason)
    yield from (_folded(module) if is_both_full(module.leaves) else module.leaves).items()
    rank = rank_of(module.leaves)
    if rank is not None and module.scale == 0:
        raise ConversionError(module.path, "LyCORIS takes an alpha of 0 for a missing one")
    if any(leaf.startswith(_SCALED) for leaf in module.leaves):
        alpha = alpha_for(module.scale, rank) if rank is not None else 1.0
        yield "alpha", alpha_tensor(alpha)


def _folded(module: SourceModule) -> Leaves:
    w1 = folded(module.leaves["lokr_w1"], module.scale)
    if w1 is None:
        raise ConversionError(
            module.path,
            f"LyCORIS applies scale 1 to two full factors, and folding {module.scale:g} into "
            f"lokr_w1 would round it in {module.leaves['lokr_w1'].dtype}; the canonical layout "
            "keeps it exactly",
        )
    return {**module.leaves, "lokr_w1": w1}

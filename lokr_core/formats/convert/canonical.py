"""The canonical layout: keys by the base's module paths, LyCORIS's leaves, an alpha for a scale."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.modules import SourceModule, is_both_full, is_scrambled
from lokr_core.formats.convert.scale import (
    Leaves,
    alpha_for,
    alpha_tensor,
    folded,
    rank_of,
    with_identity,
)

METADATA = {"lokr_serve.format": "canonical", "lokr_serve.format_version": "1"}

SUFFIXES = {
    "lora_up": "lora_up.weight",
    "lora_down": "lora_down.weight",
    "lora_mid": "lora_mid.weight",
    "lora_up_bias": "lora_up.bias",
    "base_weight": "base_layer.weight",
    "base_bias": "base_layer.bias",
}
_FACTORS = ("lokr_", "hada_", "lora_")


def canonical_tensors(modules: Sequence[SourceModule]) -> dict[str, Tensor]:
    """Return the tensors of a canonical file by key.

    Raises:
        ConversionError: A module has no exact form.
    """
    return {
        f"{module.path}.{SUFFIXES.get(leaf, leaf)}": tensor
        for module in modules
        for leaf, tensor in _leaves(module)
    }


def _leaves(module: SourceModule) -> Iterator[tuple[str, Tensor]]:
    check_plain(module)
    leaves: Leaves = module.leaves
    if is_both_full(leaves):
        leaves = _without_scale(leaves, module.scale)
    yield from leaves.items()
    if any(leaf.startswith(_FACTORS) for leaf in leaves):
        yield "alpha", alpha_tensor(alpha_for(module.scale, rank_of(leaves) or 1))


def _without_scale(leaves: Leaves, scale: float) -> Leaves:
    """Return two full factors so that the scale is no longer needed, or so that alpha tells it."""
    factor = folded(leaves["lokr_w1"], scale)
    if factor is not None:
        return {**leaves, "lokr_w1": factor}
    others = {leaf: tensor for leaf, tensor in leaves.items() if leaf != "lokr_w1"}
    return {**with_identity(leaves["lokr_w1"]), **others}


def check_plain(module: SourceModule) -> None:
    """Refuse factors out of which only PEFT makes what its trainer had.

    Raises:
        ConversionError: They are such.
    """
    if module.is_peft and is_scrambled(module):
        raise ConversionError(
            module.path,
            "PEFT makes another matrix of a full lokr_w2 of a Conv1d than any other program does",
        )

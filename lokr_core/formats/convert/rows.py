"""Outputs of a file's module, chosen and reordered in the file's own tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lokr_core.formats.binding import Target
from lokr_core.formats.convert.error import ConversionError
from lokr_core.formats.convert.scale import Leaves

# The leaves whose first axis is the outputs; sides of a Tucker core have them last.
_OUTPUTS = ("lora_up", "diff", "diff_b", "lora_up_bias", "lora_magnitude_vector", "bias", "weight")


def placed(leaves: Leaves, targets: Sequence[Target]) -> Leaves:
    """Return the leaves of one base module, out of those of a file's module.

    Args:
        leaves: The leaves of the file's module.
        targets: Where its outputs belong in that one base module.

    Raises:
        ConversionError: The outputs cannot be chosen without forming a product.
    """
    if targets[0].rows is None:
        return leaves
    spec, order = targets[0].spec, _order(targets)
    if order is None:
        raise ConversionError(
            spec.path, "the file has a module for some of its outputs only, which no layout has"
        )
    chosen = {leaf: _choose(leaf, tensor, order, leaves) for leaf, tensor in leaves.items()}
    if any(tensor is None for tensor in chosen.values()):
        raise ConversionError(
            spec.path,
            "is part of a fused module in the file, and cuts through blocks of its factors; "
            "it is served, but has no factors of its own to write",
        )
    return {leaf: tensor for leaf, tensor in chosen.items() if tensor is not None}


def _order(targets: Sequence[Target]) -> Tensor | None:
    """Return which of the file's outputs each output of the base module is."""
    order = torch.full((targets[0].spec.out_features,), -1, dtype=torch.long)
    for target in targets:
        assert target.rows is not None
        assert target.at is not None
        rows = torch.arange(target.rows.start, target.rows.stop)
        order[target.at : target.at + len(rows)] = rows
    return None if bool((order < 0).any()) else order


def _choose(leaf: str, tensor: Tensor, order: Tensor, leaves: Leaves) -> Tensor | None:
    """Return a leaf with the chosen outputs alone, or None if it cannot be cut so."""
    if leaf in _OUTPUTS:
        return tensor[order]
    if leaf == "dora_scale":
        return tensor if tensor.shape[0] == 1 else tensor[order]
    if leaf in ("hada_w1_a", "hada_w2_a"):
        return tensor[:, order] if f"hada_t{leaf[6]}" in leaves else tensor[order]
    if leaf.startswith("lokr_"):
        return _choose_lokr(leaf, tensor, order, leaves)
    return tensor if leaf in _WITHOUT_OUTPUTS else None


_WITHOUT_OUTPUTS = frozenset(
    ["lora_down", "lora_mid", "hada_w1_b", "hada_w2_b", "hada_t1", "hada_t2"]
)


def _choose_lokr(leaf: str, tensor: Tensor, order: Tensor, leaves: Leaves) -> Tensor | None:
    """Choose outputs of a Kronecker product: whole rows of w1, or rows of w2 below a single one."""
    w1 = leaves.get("lokr_w1", leaves.get("lokr_w1_a"))
    assert w1 is not None
    if w1.shape[0] == 1:
        if leaf == "lokr_w2" or (leaf == "lokr_w2_a" and "lokr_t2" not in leaves):
            return tensor[order]
        return tensor[:, order] if leaf == "lokr_w2_a" else tensor
    blocks = order.view(-1, _w2_rows(leaves)) if len(order) % _w2_rows(leaves) == 0 else None
    if blocks is None or not _are_whole(blocks):
        return None
    return tensor[blocks[:, 0] // blocks.shape[1]] if leaf in ("lokr_w1", "lokr_w1_a") else tensor


def _w2_rows(leaves: Leaves) -> int:
    if "lokr_t2" in leaves:
        return leaves["lokr_w2_a"].shape[1]
    return leaves["lokr_w2" if "lokr_w2" in leaves else "lokr_w2_a"].shape[0]


def _are_whole(blocks: Tensor) -> bool:
    """Return whether each row counts up from a multiple of its own length."""
    num_rows = blocks.shape[1]
    starts = blocks[:, :1]
    in_step = torch.equal(blocks, starts + torch.arange(num_rows))
    return in_step and not bool((starts % num_rows).any())

"""Which mixes adapters that replace modules can be part of."""

from collections.abc import Iterator, Sequence

from lokr_core.adapter import Adapter
from lokr_core.errors import MixError
from lokr_core.layout import ReplacementSlots, TensorSlot
from lokr_core.mix import MixPart, module_weight

Parts = Sequence[tuple[MixPart, Adapter]]


def require_replaceable(parts: Parts) -> None:
    """Check that what the parts of a mix replace can be mixed.

    Raises:
        MixError: Two adapters replace the same module, or one replaces it by a weight of another
            shape and is not alone there, at weight 1.
    """
    for part, adapter, path, replaced in _replaced(parts):
        others = [
            other
            for other in parts
            if other[0] is not part
            and path in other[1].layout.modules
            and module_weight(other[0], path) != 0
        ]
        _require_single(part, path, replaced, others)
        if _is_resized(adapter, path, replaced):
            _require_alone(part, path, others)


def resized_module(parts: Parts) -> str | None:
    """Return the path of a module whose parameters get another shape, or None."""
    for _, adapter, path, replaced in _replaced(parts):
        if _is_resized(adapter, path, replaced):
            return path
    return None


def _replaced(parts: Parts) -> Iterator[tuple[MixPart, Adapter, str, ReplacementSlots]]:
    """Yield what the parts replace, except where their weight is 0."""
    for part, adapter in parts:
        for path, slots in adapter.layout.modules.items():
            if slots.replacement is not None and module_weight(part, path) != 0:
                yield part, adapter, path, slots.replacement


def _require_single(part: MixPart, path: str, replaced: ReplacementSlots, others: Parts) -> None:
    for other, adapter in others:
        slots = adapter.layout.modules[path].replacement
        if slots is None:
            continue
        is_same = (slots.weight and replaced.weight) or (slots.bias and replaced.bias)
        if is_same:
            raise MixError(
                part.ref.adapter_id,
                f"replaces {path!r}, which {other.ref.adapter_id!r} replaces too; they cannot be "
                "mixed",
            )


def _is_resized(adapter: Adapter, path: str, replaced: ReplacementSlots) -> bool:
    shape = adapter.spec.modules[path].shape
    return _differs(replaced.weight, shape) or _differs(replaced.bias, shape[:1])


def _differs(slot: TensorSlot | None, shape: tuple[int, ...]) -> bool:
    return slot is not None and slot.shape != shape


def _require_alone(part: MixPart, path: str, others: Parts) -> None:
    weight, rule = module_weight(part, path), "so it can only be applied alone, at weight 1"
    if weight != 1:
        raise MixError(
            part.ref.adapter_id,
            f"replaces {path!r} by one of another size, {rule}, not {weight}",
        )
    for other, _ in others:
        raise MixError(
            part.ref.adapter_id,
            f"replaces {path!r} by one of another size, {rule}; "
            f"{other.ref.adapter_id!r} changes it too",
        )

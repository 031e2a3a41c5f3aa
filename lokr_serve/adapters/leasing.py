"""What a request may ask of adapters, and the lease that it gets."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lokr_core import (
    ADAPTER_ID_RULE,
    Adapted,
    AdapterMix,
    AdapterRef,
    Apply,
    MixError,
    MixPart,
    is_adapter_id,
)
from lokr_serve.errors import InvalidRequestError
from lokr_serve.types import AdapterWeight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lease:
    """A mix that is ready to use for as long as the lease is held."""

    ids: tuple[str, ...]  # what each part of the request named, in its order
    mix: AdapterMix  # of the parts that can change anything
    apply: Apply
    ended: asyncio.Future[str]  # resolves to the id of an adapter that was unloaded by force


def is_used(part: AdapterWeight) -> bool:
    """Whether a part can change anything; one of weight 0 without module weights cannot."""
    return part.weight != 0 or bool(part.module_weights)


def require_adapter_id(field: str, adapter_id: str) -> None:
    """Check an adapter id.

    Raises:
        InvalidRequestError: It is no id; ``field`` is its path in the request.
    """
    if not is_adapter_id(adapter_id):
        raise InvalidRequestError(field, f"{adapter_id!r} is no adapter id: {ADAPTER_ID_RULE}")


def require_seconds(field: str, seconds: float | None) -> None:
    """Check a duration.

    Raises:
        InvalidRequestError: It is negative or not finite; ``field`` is its path in the request.
    """
    if seconds is not None and not 0 <= seconds < math.inf:
        raise InvalidRequestError(field, f"{seconds} s is not a duration of at least 0")


def check_parts(parts: Sequence[AdapterWeight], max_parts: int) -> None:
    """Check what can be checked of a mix without its adapters.

    Raises:
        InvalidRequestError: There are too many parts, an id is malformed or named twice, or a
            weight is not finite.
    """
    if len(parts) > max_parts:
        raise InvalidRequestError(
            "adapters", f"{len(parts)} adapters are more than the limit of {max_parts}"
        )
    seen: set[str] = set()
    for index, part in enumerate(parts):
        field = f"adapters[{index}]"
        require_adapter_id(f"{field}.adapter_id", part.adapter_id)
        if part.adapter_id in seen:
            raise InvalidRequestError(
                f"{field}.adapter_id", f"{part.adapter_id!r} is named twice; add the weights"
            )
        seen.add(part.adapter_id)
        _require_finite(f"{field}.weight", part.weight)
        for pattern, weight in part.module_weights:
            _require_finite(f"{field}.module_weights[{pattern!r}]", weight)


def _require_finite(field: str, weight: float) -> None:
    if not math.isfinite(weight):
        raise InvalidRequestError(field, f"{weight} is not a finite number")


def build_mix(
    parts: Sequence[AdapterWeight], refs: Mapping[str, AdapterRef], adapted: Adapted
) -> AdapterMix:
    """Return the mix of these parts, whose adapters have been added to the model.

    Args:
        parts: Parts that passed :func:`check_parts`.
        refs: The version of each used part, by id.
        adapted: The model.

    Raises:
        InvalidRequestError: A module pattern matches nothing, or two disagree.
    """
    built: list[MixPart] = []
    for index, part in enumerate(parts):
        if not is_used(part):
            continue
        module_weights = tuple(sorted(part.module_weights))
        ref = refs[part.adapter_id]
        mix_part = MixPart(ref=ref, weight=part.weight, module_weights=module_weights)
        if module_weights:
            _check_patterns(f"adapters[{index}].module_weights", mix_part, adapted)
        built.append(mix_part)
    return AdapterMix(tuple(built))


def _check_patterns(field: str, part: MixPart, adapted: Adapted) -> None:
    try:
        adapted.check(AdapterMix((part,)))
    except MixError as error:
        raise InvalidRequestError(field, str(error)) from error

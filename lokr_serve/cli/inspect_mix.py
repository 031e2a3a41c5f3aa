"""What a mix of adapters costs on a base model, and what merging it loses."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lokr_core import Adapted, Adapter, AdapterMix, MixError, read_adapter
from lokr_serve.cli.weights import Weighted


@dataclass(frozen=True, slots=True, kw_only=True)
class MixReport:
    """A mix, and why it would not be served, or what it costs."""

    name: str
    problem: str | None = None
    base_macs: int = 0  # of one row through every linear module of the base
    unmerged_macs: int = 0  # of one row through the deltas
    merge_macs: int = 0  # of merging once
    merged_bytes: int = 0
    adapter_bytes: int = 0  # of the factors as they are kept
    rounding_loss: float | None = None  # share of the change; None if it was not merged


def report_mix(
    weighted: Sequence[Weighted], adapters: Sequence[Adapter], adapted: Adapted
) -> MixReport:
    """Return what a mix of adapters costs.

    Args:
        weighted: The adapters' weights.
        adapters: The adapters, in the same order.
        adapted: The base that they were read for.

    Raises:
        MixError: Two adapters have one id, or a weight is not finite.
    """
    mix = _mix(weighted, adapters)
    for adapter in adapters:
        adapted.add(adapter)
    try:
        adapted.check(mix)
    except MixError as error:
        return MixReport(name=mix.name, problem=str(error))
    num_bytes = sum(adapter.num_bytes for adapter in adapters)
    return MixReport(name=mix.name, adapter_bytes=num_bytes, **asdict(adapted.cost(mix)))


def rounding_loss(weighted: Sequence[Weighted], adapted: Adapted) -> float:
    """Return the share of a mix's change that merging it into the base would lose.

    Args:
        weighted: The adapters' paths and weights.
        adapted: The base, with its weights.
    """
    adapters = [read_adapter(Path(item.name), adapted.spec) for item in weighted]
    for adapter in adapters:
        adapted.add(adapter)
    return adapted.merge(_mix(weighted, adapters)).rounding_loss


def _mix(weighted: Sequence[Weighted], adapters: Sequence[Adapter]) -> AdapterMix:
    weights = {adapter.ref: item.weight for adapter, item in zip(adapters, weighted, strict=True)}
    if len(weights) < len(adapters):
        raise MixError("adapters", "one adapter is named twice")
    return AdapterMix.of(weights, max_parts=len(weights))

"""What the tests of the registry do and ask, as its callers would."""

from lokr_core import Adapted, AdapterMix, AdapterNotAddedError, AdapterRef, Apply
from lokr_serve.adapters import AdapterRegistry
from lokr_serve.metrics import Metrics
from lokr_serve.types import AdapterWeight, ApplyMode, LoadSpec
from tests.serve.adapters.conftest import MakeRegistry, Store
from tests.serve.adapters.waiting import until as until


def part(adapter_id: str, weight: float = 1.0, **module_weights: float) -> AdapterWeight:
    """Return one adapter of a request; module weights are given by a plain word of the path."""
    patterns = tuple((f"*{word}*", value) for word, value in module_weights.items())
    return AdapterWeight(adapter_id=adapter_id, weight=weight, module_weights=patterns)


async def use(registry: AdapterRegistry, *parts: str | AdapterWeight) -> AdapterMix:
    """Lease a mix as a request does, let go, and return it."""
    weights = [part(given) if isinstance(given, str) else given for given in parts]
    async with registry.lease(weights, ApplyMode.UNMERGED) as lease:
        return lease.mix


async def resolve(
    registry: AdapterRegistry, mode: ApplyMode, adapter_id: str = "a", weight: float = 1.0
) -> tuple[AdapterMix, Apply]:
    """Lease an adapter, let go, and return its mix and how it would have been applied."""
    async with registry.lease([part(adapter_id, weight)], mode) as lease:
        return lease.mix, lease.apply


def spec(adapter_id: str = "a", source: str | None = None, **fields: object) -> LoadSpec:
    """Return a request to load an id, by default from the source of the same name."""
    return LoadSpec(adapter_id=adapter_id, source=source or adapter_id, **fields)  # type: ignore[arg-type]


async def scanned(
    make_registry: MakeRegistry, store: Store, names: str, **fields: object
) -> AdapterRegistry:
    """Return a registry that knows adapters of these one-letter names."""
    for seed, name in enumerate(names):
        store.write(name, seed)
    registry = make_registry(**fields)
    await registry.scan()
    return registry


def is_added(adapted: Adapted, adapters: AdapterMix | AdapterRef) -> bool:
    """Whether the model holds an adapter, or all adapters of a mix."""
    mix = adapters if isinstance(adapters, AdapterMix) else AdapterMix.of({adapters: 1.0})
    try:
        adapted.check(mix)
    except AdapterNotAddedError:
        return False
    return True


def evictions(metrics: Metrics, reason: str) -> float:
    """Return how many adapters have left memory for a reason."""
    labels = {"reason": reason}
    return metrics.registry.get_sample_value("lokr_serve_adapter_evictions_total", labels) or 0.0


def num_merges(metrics: Metrics) -> float | None:
    """Return how many mixes were merged."""
    return metrics.registry.get_sample_value("lokr_serve_merges_total")

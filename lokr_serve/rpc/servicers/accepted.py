"""What is the same for every request to an engine: its seed, its lease, and its mix."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from lokr_core import AdapterMix
from lokr_serve.adapters import AdapterRegistry, Lease, Workload
from lokr_serve.calls import call_record, phase
from lokr_serve.errors import AdapterUnloadedError
from lokr_serve.interruption import Interruption
from lokr_serve.rpc.interceptors.authorization import require_meaning
from lokr_serve.types import AdapterWeight, ApplyMode, ResolvedAdapter


def seed_or_drawn(seed: int | None) -> int:
    """Return a request's seed, or one that is drawn for it."""
    return secrets.randbits(64) if seed is None else seed


def permitted_ids(registry: AdapterRegistry, adapters: Sequence[AdapterWeight]) -> Sequence[str]:
    """Return the ids of a mix's adapters; the caller may use them, as named and as resolved.

    Raises:
        NotPermittedError: It may not use one of them, whether or not that exists.
        InvalidRequestError: The mix is malformed.
        AdapterNotFoundError, AdapterDrainingError: An adapter takes no requests.
    """
    adapter_ids = _require_rights(registry, adapters)
    registry.check(adapters)
    return adapter_ids


def _require_rights(registry: AdapterRegistry, adapters: Sequence[AdapterWeight]) -> Sequence[str]:
    """Return what the names of a mix stand for; the caller may use all of it."""
    return tuple(require_meaning(part.adapter_id, registry.resolve) for part in adapters)


@asynccontextmanager
async def leased(
    registry: AdapterRegistry,
    adapters: Sequence[AdapterWeight],
    mode: ApplyMode,
    workload: Workload | None = None,
) -> AsyncIterator[Lease]:
    """Hold the lease of a mix until the block ends, or ends by force with one of its adapters.

    Raises:
        AdapterUnloadedError: An adapter was unloaded by force.
        NotPermittedError: A name has come to mean an adapter that the caller may not use.
    """
    async with AsyncExitStack() as held:
        with phase("load"):
            _require_rights(registry, adapters)  # of what lease resolves, in the same step
            lease = await held.enter_async_context(registry.lease(adapters, mode, workload))
        record = call_record()
        record.mix, record.apply_mode = lease.mix.name, lease.apply.value
        await held.enter_async_context(Interruption(lease.ended, AdapterUnloadedError))
        yield lease


def resolved(mix: AdapterMix) -> tuple[ResolvedAdapter, ...]:
    """Return the parts of a mix as a reply tells them."""
    return tuple(
        ResolvedAdapter(
            adapter_id=part.ref.adapter_id, version=part.ref.version, weight=part.weight
        )
        for part in mix.parts
    )

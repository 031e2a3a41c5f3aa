"""How many bytes of adapters a client may have: those that it loaded or uploaded."""

from collections.abc import Iterable

from lokr_serve.adapters.record import Record
from lokr_serve.errors import LimitExceededError
from lokr_serve.types import LoadSpec


def require_owned_room(records: Iterable[Record], spec: LoadSpec, num_bytes: int) -> None:
    """Check that a client may have an adapter beside its others, in memory or not.

    Args:
        records: Of all registered ids; one of the same id makes way for the adapter.
        spec: The request to load it.
        num_bytes: Of the adapter.

    Raises:
        LimitExceededError: It may not.
    """
    if spec.max_owner_bytes is None:
        return
    owned = sum(
        record.known.num_bytes
        for record in records
        if record.owner == spec.owner
        and not record.is_declared
        and record.request.adapter_id != spec.adapter_id
    )
    if owned + num_bytes > spec.max_owner_bytes:
        subject = f"client {spec.owner!r}" if spec.owner else "every client without a name"
        raise LimitExceededError(
            subject,
            f"may have {spec.max_owner_bytes} bytes of adapters and has {owned}, which leaves no "
            f"room for the {num_bytes} of {spec.adapter_id!r}; unload another first",
        )

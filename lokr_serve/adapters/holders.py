"""LeaseBook: which leases hold which ids, so that an id can be drained."""

import asyncio
from dataclasses import dataclass, field

from lokr_serve.errors import AdapterBusyError


@dataclass(slots=True, eq=False)
class _Holders:
    """The leases that hold one id, by the futures that would end them."""

    leases: set[asyncio.Future[str]] = field(default_factory=set)
    none_left: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseBook:
    """Counts the leases of each id that has any, over all of its versions."""

    def __init__(self) -> None:
        self._holders: dict[str, _Holders] = {}

    def count(self, adapter_id: str) -> int:
        """Return the number of leases that hold an id."""
        holders = self._holders.get(adapter_id)
        return 0 if holders is None else len(holders.leases)

    def add(self, adapter_id: str, ended: asyncio.Future[str]) -> None:
        """Note that a lease holds an id; ``ended`` is resolved if it must let go."""
        self._holders.setdefault(adapter_id, _Holders()).leases.add(ended)

    def remove(self, adapter_id: str, ended: asyncio.Future[str]) -> None:
        """Note that a lease has let go of an id."""
        holders = self._holders[adapter_id]
        holders.leases.remove(ended)
        if not holders.leases:
            del self._holders[adapter_id]
            holders.none_left.set()

    async def drain(self, adapter_id: str, *, drain_seconds: float, force: bool) -> None:
        """Wait until nothing holds an id, which nobody may lease meanwhile.

        Args:
            adapter_id: The id.
            drain_seconds: How long its leases may take to end by themselves.
            force: End them then, and wait until they have let go.

        Raises:
            AdapterBusyError: Some are left, and they are not to be ended by force.
        """
        holders = self._holders.get(adapter_id)
        if holders is None:
            return
        try:
            async with asyncio.timeout(drain_seconds):
                await holders.none_left.wait()
        except TimeoutError:
            if not force:
                raise AdapterBusyError(adapter_id, len(holders.leases)) from None
            for ended in holders.leases:
                if not ended.done():
                    ended.set_result(adapter_id)
            await holders.none_left.wait()

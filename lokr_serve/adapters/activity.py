"""What inference gateways are told: the names that would be served from memory, and who waits."""

from collections import OrderedDict
from collections.abc import Sequence

from lokr_core import AdapterMix
from lokr_serve.adapters.catalogue import Catalogue
from lokr_serve.adapters.manifest import AliasTable
from lokr_serve.adapters.residency import Residency
from lokr_serve.metrics import AdapterActivity

# In the gateways' series, where all names of a kind share one label.
MAX_IDS = 256
MAX_MIXES = 64


class RecentMixes:
    """The mixes of the last requests that have a name of their own; lives on the event loop.

    A mix of one adapter at weight 1 has the adapter's, and stands for itself.
    """

    def __init__(self) -> None:
        self._names: OrderedDict[AdapterMix, str] = OrderedDict()  # asked for last, last

    def note(self, mix: AdapterMix) -> None:
        """Note that a request has the mix."""
        if mix not in self._names:
            name = mix.name
            if name in ("", *(part.ref.adapter_id for part in mix.parts)):
                return
            self._names[mix] = name
        self._names.move_to_end(mix)
        if len(self._names) > MAX_MIXES:
            self._names.popitem(last=False)

    def names(self, residency: Residency) -> Sequence[str]:
        """Return the canonical names of those that are in memory whole, the last one first."""
        return [name for mix, name in reversed(self._names.items()) if _is_resident(mix, residency)]


def _is_resident(mix: AdapterMix, residency: Residency) -> bool:
    for part in mix.parts:
        resident = residency.get(part.ref.adapter_id)
        if resident is None or resident.ref != part.ref:
            return False
    return True


def describe_activity(
    *, residency: Residency, catalogue: Catalogue, aliases: AliasTable, mixes: RecentMixes
) -> AdapterActivity:
    """Return the names by which requests ask for what is in memory, and the ids waited for.

    First come ids, the last used first, then their aliases, then mixes. A gateway takes a server
    to have room while there are fewer names than ``max_adapters``, so that is their number with
    the adapters that would still fit, whatever is left out and whatever takes no room.
    """
    resident = residency.recent(MAX_IDS)
    others = [alias for name in resident for alias in aliases.names_of(name)][:MAX_IDS]
    names = [*resident, *others, *mixes.names(residency)]
    num_free = (residency.capacity or len(catalogue)) - len(residency)
    return AdapterActivity(
        max_adapters=len(names) + max(num_free, 0),
        resident=names,
        waiting=catalogue.waiting[:MAX_IDS],
    )

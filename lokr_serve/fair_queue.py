"""The waiting line: bounded, first come first served within a key, fair by cost across keys."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from lokr_serve.errors import QueueFullError

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True, kw_only=True)
class _Lane(Generic[T]):
    """The items of one key, and what the key was served until now, in units of cost."""

    served: int
    items: OrderedDict[T, int] = field(default_factory=OrderedDict)


class FairQueue(Generic[T]):
    """A bounded queue that gives every key that waits the same share of cost.

    Start-time fair queueing: each key has an account of the cost that it was served; the key with
    the lowest account goes next, the one that came first if several are level. A key that joins
    starts level with the one served last, so nobody saves up while idle. While two keys wait, what
    they are served differs by no more than the cost of one item of each.

    Every operation takes constant time but for the choice of the key, which takes the logarithm of
    the number of keys. An item must be hashable and may wait once. Not thread-safe.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._order: list[tuple[int, int, Hashable]] = []  # one entry for each lane
        self._key_of: dict[T, Hashable] = {}
        self._now = 0  # the account of the key that was served last, before it was served
        self._num_entries = 0

    def __len__(self) -> int:
        return len(self._key_of)

    def push(self, item: T, *, key: Hashable, cost: int) -> None:
        """Add an item at the end of its key's line.

        Args:
            item: What waits.
            key: Whose share it counts against.
            cost: What serving it takes, above 0.

        Raises:
            QueueFullError: ``max_size`` items wait already.
        """
        assert item not in self._key_of, "an item waits once"
        assert cost > 0, "a free item would never move its key back"
        if len(self) >= self._max_size:
            raise QueueFullError(self._max_size)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(served=self._now)
            heappush(self._order, self._entry(lane, key))
        lane.items[item] = cost
        self._key_of[item] = key

    def peek(self) -> T:
        """Return the item that :meth:`pop` would.

        Raises:
            IndexError: Nothing waits.
        """
        return next(iter(self._lanes[self._next_key()].items))

    def pop(self) -> T:
        """Remove and return the next item.

        Raises:
            IndexError: Nothing waits.
        """
        key = self._next_key()
        lane = self._lanes[key]
        item, cost = lane.items.popitem(last=False)
        del self._key_of[item]
        self._now = lane.served
        lane.served += cost
        heapreplace(self._order, self._entry(lane, key))
        self._forget_if_empty()
        return item

    def remove(self, item: T) -> bool:
        """Remove an item wherever it stands; whether it was waiting."""
        if item not in self._key_of:
            return False
        del self._lanes[self._key_of.pop(item)].items[item]
        self._forget_if_empty()
        return True

    def _next_key(self) -> Hashable:
        """Return the key whose turn it is, after closing accounts that nobody waits on."""
        while True:
            _, _, key = self._order[0]
            if self._lanes[key].items:
                return key
            heappop(self._order)  # has waited idle until the others were level with it
            del self._lanes[key]

    def _entry(self, lane: _Lane[T], key: Hashable) -> tuple[int, int, Hashable]:
        self._num_entries += 1
        return (lane.served, self._num_entries, key)

    def _forget_if_empty(self) -> None:
        """Close all accounts once nobody waits: they compare keys that wait together."""
        if not self._key_of:
            self._lanes.clear()
            self._order.clear()
            self._now = 0

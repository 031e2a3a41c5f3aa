"""The waiting line: by priority, then fair by cost across clients, then across their mixes."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

from lokr_serve.types import Priority

T = TypeVar("T", bound=Hashable)


class _Line(Generic[T]):
    """Items in the order in which they came, each with its cost."""

    def __init__(self) -> None:
        self._costs: OrderedDict[T, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._costs)

    def push(self, item: T, path: Sequence[Hashable], cost: int) -> None:
        self._costs[item] = cost

    def peek(self) -> T:
        return next(iter(self._costs))

    def pop(self) -> tuple[T, int]:
        return self._costs.popitem(last=False)

    def remove(self, item: T, path: Sequence[Hashable]) -> None:
        del self._costs[item]


@dataclass(slots=True, kw_only=True)
class _Lane(Generic[T]):
    """What waits under one key, and what the key was served until now, in units of cost."""

    served: int
    items: "_Line[T] | _Shares[T]"


class _Shares(Generic[T]):
    """Items under keys that get the same share of cost; start-time fair queueing.

    Each key has an account of the cost that it was served; the key with the lowest account goes
    next, the one that came first if several are level. A key that joins starts level with the one
    served last, so nobody saves up while idle.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._order: list[tuple[int, int, Hashable]] = []  # one entry for each lane
        self._now = 0  # the account of the key that was served last, before it was served
        self._num_entries = 0
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    @property
    def num_accounts(self) -> int:
        """Accounts of keys, those without an item included."""
        return len(self._lanes)

    def push(self, item: T, path: Sequence[Hashable], cost: int) -> None:
        key, *rest = path
        lane = self._lanes.get(key)
        if lane is None:
            items: _Line[T] | _Shares[T] = _Shares() if rest else _Line()
            lane = self._lanes[key] = _Lane(served=self._now, items=items)
            heappush(self._order, self._entry(lane, key))
        lane.items.push(item, rest, cost)
        self._num_items += 1

    def peek(self) -> T:
        return self._lanes[self._next_key()].items.peek()

    def pop(self) -> tuple[T, int]:
        key = self._next_key()
        lane = self._lanes[key]
        item, cost = lane.items.pop()
        self._now = lane.served
        lane.served += cost
        heapreplace(self._order, self._entry(lane, key))
        self._count_one_less()
        return item, cost

    def remove(self, item: T, path: Sequence[Hashable]) -> None:
        key, *rest = path
        self._lanes[key].items.remove(item, rest)
        self._count_one_less()

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

    def _count_one_less(self) -> None:
        """Close all accounts once nobody waits: they compare keys that wait together."""
        self._num_items -= 1
        if not self._num_items:
            self._lanes.clear()
            self._order.clear()
            self._now = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Whose share of the engine something counts against, and how soon it is wanted."""

    priority: Priority
    client: str
    mix: Hashable


class FairQueue(Generic[T]):
    """A queue that serves the highest class, and within it every client, and mix, alike.

    Nothing of a class is served while something of a higher one waits. Within a class, while two
    clients wait, what they are served differs by no more than the cost of one item of each; the
    same holds for two mixes of one client. Items of one client and mix go in the order in which
    they came.

    Every operation takes constant time but for the choice of the client and mix, which takes the
    logarithm of their numbers. An item must be hashable and may wait once. The queue has no
    bound: who lets requests in bounds how many wait. Not thread-safe.
    """

    def __init__(self) -> None:
        self._classes: dict[Priority, _Shares[T]] = {
            priority: _Shares() for priority in sorted(Priority, key=_rank, reverse=True)
        }
        self._shares: dict[T, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def num_accounts(self) -> int:
        """Accounts of clients in all classes; bounded by those that wait, or did a moment ago."""
        return sum(shares.num_accounts for shares in self._classes.values())

    def push(self, item: T, *, share: Share, cost: int) -> None:
        """Add an item at the end of its line.

        Args:
            item: What waits.
            share: Whose share it counts against.
            cost: What serving it takes, above 0.
        """
        assert item not in self._shares, "an item waits once"
        assert cost > 0, "a free item would never move its key back"
        self._classes[share.priority].push(item, (share.client, share.mix), cost)
        self._shares[item] = share

    def peek(self) -> T:
        """Return the item that :meth:`pop` would.

        Raises:
            IndexError: Nothing waits.
        """
        return self._next_class().peek()

    def pop(self) -> T:
        """Remove and return the next item.

        Raises:
            IndexError: Nothing waits.
        """
        item, _ = self._next_class().pop()
        del self._shares[item]
        return item

    def remove(self, item: T) -> bool:
        """Remove an item wherever it stands; whether it was waiting."""
        share = self._shares.pop(item, None)
        if share is None:
            return False
        self._classes[share.priority].remove(item, (share.client, share.mix))
        return True

    def _next_class(self) -> _Shares[T]:
        for shares in self._classes.values():
            if shares:
                return shares
        raise IndexError("nothing waits")


def _rank(priority: Priority) -> int:
    return priority.value

"""A queue in which clients take turns, so that one with many requests does not keep the others waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """One item of each address in turn; of an address one of each name in turn, first come, first served. Not
    locked."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, OrderedDict[str, deque[Item]]] = OrderedDict()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def put(self, address: str, name: str, item: Item) -> None:
        self._turns.setdefault(address, OrderedDict()).setdefault(name, deque()).append(item)
        self._n += 1

    def take(self) -> Item:
        """The next item. Raises KeyError if there is none."""
        address, names = self._turns.popitem(last=False)
        name, items = names.popitem(last=False)
        item = items.popleft()
        self._n -= 1
        if items:
            names[name] = items
        if names:
            self._turns[address] = names
        return item

    def drain(self) -> list[Item]:
        """All items, which are no longer in the queue."""
        drained = [item for names in self._turns.values() for items in names.values() for item in items]
        self._turns.clear()
        self._n = 0
        return drained

"""A queue in which clients take turns, so that one with many requests does not keep the others waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served for each client; one item of each client in turn. Not locked."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._by_client.values()))

    def put(self, client: str, item: Item) -> None:
        self._by_client.setdefault(client, deque()).append(item)

    def take(self) -> Item:
        """The next item. Raises KeyError if there is none."""
        client, items = self._by_client.popitem(last=False)
        item = items.popleft()
        if items:
            self._by_client[client] = items
        return item

    def drain(self) -> list[Item]:
        """All items, which are no longer in the queue."""
        items = [item for items in self._by_client.values() for item in items]
        self._by_client.clear()
        return items

"""Responses that may be gone on from by their ids, in memory, bounded; the least lately used are forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cellmd.server.replies import ResponseReply

_MOST = 1024
_MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Conversation:
    """items: all turns, what was asked and what was answered, as the interface has them. response: the last answer."""

    items: Sequence[Any]
    response: ResponseReply


class Conversations:
    """For one thread."""

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._n_bytes = 0
        self._held: OrderedDict[str, tuple[Conversation, int]] = OrderedDict()

    def keep(self, conversation: Conversation) -> None:
        """Under the response's id. One that is larger than all may be together is not kept."""
        n_bytes = _size(conversation.items) + _size(conversation.response)
        if n_bytes > self._most_bytes:
            return
        self._held[conversation.response["id"]] = conversation, n_bytes
        self._n_bytes += n_bytes
        while len(self._held) > self._most or self._n_bytes > self._most_bytes:
            self._n_bytes -= self._held.popitem(last=False)[1][1]

    def get(self, response_id: str) -> Conversation | None:
        if response_id not in self._held:
            return None
        self._held.move_to_end(response_id)
        return self._held[response_id][0]

    def forget(self, response_id: str) -> bool:
        """Whether there was one of this id."""
        found = self._held.pop(response_id, None)
        self._n_bytes -= found[1] if found is not None else 0
        return found is not None


def _size(value: Any) -> int:
    """Bytes in memory, about."""
    total, left = 0, [value]
    while left:
        one = left.pop()
        total += 64
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
    return total

"""Byte-pair merges over a `Table`: normalized text to ids, exactly as the rules say, in time n log n.

The rule: among all neighbouring tokens that can be joined, join those with the smallest rank, the leftmost first, until
none can. Two observations make it quick without changing a result. No merge ever crosses a pair of characters that no
token joins, so the text falls into short pieces, each merged on its own. And text repeats itself, so pieces and pairs
are remembered, in dictionaries that are emptied when they are full.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeVar

import numpy as np

from cellmd.vocabulary.layout import ID_BITS, may_join
from cellmd.vocabulary.table import Table

_ID_MASK = (1 << ID_BITS) - 1
_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1
# Together a few MB at most. A piece is remembered only if it is short: long ones seldom come back.
_MAX_REMEMBERED = 1 << 14
_MAX_REMEMBERED_PAIRS = 1 << 15
_MAX_REMEMBERED_PIECE = 48

_K = TypeVar("_K")
_V = TypeVar("_V")


class Merger:
    """Merges text by the rules of one table. Safe to use from several threads."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._pairs: dict[int, int] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, already normalized and free of added tokens.

        Raises UnicodeEncodeError if the text holds a lone surrogate.
        """
        if not text:
            return []
        cuts = (np.flatnonzero(~may_join(text, self._table.borders)) + 1).tolist()
        ids: list[int] = []
        remembered = self._pieces.get
        for start, end in pairwise([0, *cuts, len(text)]):
            piece = text[start:end]
            found = remembered(piece)
            if found is None:
                found = self._merge_piece(piece)
            ids += found
        return ids

    def _merge_piece(self, piece: str) -> tuple[int, ...]:
        if len(piece) == 1:
            ids = self._split_character(piece)
        else:
            symbols: list[int] = []
            for character in piece:
                symbols += self._pieces.get(character) or self._merge_piece(character)
            ids = tuple(self._merge(symbols))
        if len(piece) <= _MAX_REMEMBERED_PIECE:
            _remember(self._pieces, piece, ids, _MAX_REMEMBERED)
        return ids

    def _split_character(self, character: str) -> tuple[int, ...]:
        """The token of one character, or the tokens of its UTF-8 bytes, which no merge joins."""
        string = character.encode()
        token = self._table.find(string)
        if 0 <= token < self._table.counts.model_tokens:
            return (token,)
        return tuple(map(self._table.byte_ids.__getitem__, string))

    def _join(self, left: int, right: int) -> int:
        """`Table.merge`, remembered for `_merge`, which looks there first."""
        code = self._table.merge(left, right)
        _remember(self._pairs, left << ID_BITS | right, code, _MAX_REMEMBERED_PAIRS)
        return code

    def _merge(self, symbols: list[int]) -> list[int]:
        """Merges `symbols` (two or more) until nothing joins. Changes the list it is given."""
        join, remembered = self._join, self._pairs.get
        n = len(symbols)
        # What joining symbol i with its right neighbour gives (-1: nothing). An entry of the queue that no longer
        # agrees with this is stale.
        joined = [-1] * n
        for i, (first, second) in enumerate(pairwise(symbols)):
            known = remembered(first << ID_BITS | second)
            joined[i] = join(first, second) if known is None else known
        queue = [code << _POSITION_BITS | i for i, code in enumerate(joined) if code >= 0]
        heapify(queue)
        following, previous = list(range(1, n + 1)), list(range(-1, n - 1))
        while queue:
            entry = heappop(queue)
            here, code = entry & _POSITION_MASK, entry >> _POSITION_BITS
            if joined[here] != code:
                continue
            token = symbols[here] = code & _ID_MASK
            absorbed = following[here]
            right = following[here] = following[absorbed]
            joined[absorbed] = -1
            joined[here] = -1
            if right < n:
                previous[right] = here
                known = remembered(token << ID_BITS | symbols[right])
                code = joined[here] = join(token, symbols[right]) if known is None else known
                if code >= 0:
                    heappush(queue, code << _POSITION_BITS | here)
            left = previous[here]
            if left >= 0:
                known = remembered(symbols[left] << ID_BITS | token)
                code = joined[left] = join(symbols[left], token) if known is None else known
                if code >= 0:
                    heappush(queue, code << _POSITION_BITS | left)
        ids, here = [], 0
        while here < n:
            ids.append(symbols[here])
            here = following[here]
        return ids


def _remember(known: dict[_K, _V], key: _K, value: _V, limit: int) -> None:
    if len(known) >= limit:
        known.clear()
    known[key] = value

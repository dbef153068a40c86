"""Finds added tokens (<bos>, <|turn>, ...) in text: leftmost first, of several at one place the longest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from cellmd.vocabulary.pipeline import AddedToken


class AddedTokens:
    """A set of strings to look for, of any number: candidates by their first two characters, then by length."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens}
        lengths: dict[str, set[int]] = {}
        for content in self._tokens:
            lengths.setdefault(content[:2], set()).add(len(content))
        # A one-character token is found at its own beginning whatever follows, so its first character stands for all.
        for first in [start for start in lengths if len(start) == 1]:
            for start in [start for start in lengths if start[0] == first and start != first]:
                lengths[first] |= lengths.pop(start)
        self._lengths = {start: sorted(sizes, reverse=True) for start, sizes in lengths.items()}
        starts = sorted(lengths, key=len, reverse=True)
        self._candidate = re.compile("|".join(map(re.escape, starts))) if starts else None

    def split(self, text: str, *, special: bool) -> Iterator[tuple[str, AddedToken | None]]:
        """Pieces of `text` in order: (text before, the added token after it), at the end (rest, None).

        With `special` False a special token is left in the text, though nothing else is looked for inside it.
        """
        done = position = 0
        while self._candidate is not None and (match := self._candidate.search(text, position)):
            position = match.start()
            token = self._longest_at(text, position, match.group())
            if token is None:
                position += 1
                continue
            end = position + len(token.content)
            if special or not token.special:
                yield text[done:position], token
                done = end
            position = end
        yield text[done:], None

    def _longest_at(self, text: str, position: int, start: str) -> AddedToken | None:
        for length in self._lengths[start]:
            token = self._tokens.get(text[position : position + length])
            if token is not None:
                return token
        return None

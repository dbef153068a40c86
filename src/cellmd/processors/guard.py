"""Keeps special tokens out of what users write.

A chat prompt is one text in which `<turn|>` and its like are control tokens. A user's own text may hold the same
strings, by accident or by design, and must not end a turn or forge another. So before the template runs, every such
string in the messages is put between two characters that occur nowhere else in them, and after it, what stands between
them is encoded as ordinary text. Messages without such strings, which is nearly all, are encoded as one text, exactly
as the reference does; others as the reference does with `sanitize_control_tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cellmd.errors import PromptError

_PRIVATE_USE = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered prompt; `literal`: a user's own text that must not be read as a special token."""

    text: str
    literal: bool


class Guard:
    """Marks and recognises special-token strings of one prompt's data."""

    def __init__(self, special_tokens: Iterable[str], data: Any) -> None:
        """data: everything that users wrote: messages, tools, nested as they are."""
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        texts = list(_strings(data))
        self._needed = any(self._special.search(text) for text in texts)
        self._open, self._close = _unused_characters(texts) if self._needed else ("", "")

    def mark(self, data: Any) -> Any:
        """The data with every special-token string marked."""
        if not self._needed:
            return data
        if isinstance(data, str):
            return self._special.sub(lambda match: f"{self._open}{match[0]}{self._close}", data)
        if isinstance(data, dict):
            return {self.mark(key): self.mark(value) for key, value in data.items()}
        if isinstance(data, list):
            return [self.mark(item) for item in data]
        return data

    def segments(self, rendered: str) -> list[Segment]:
        """Cut a rendered prompt at the marks, dropping them (templates may separate a pair: each still cuts)."""
        if not self._needed:
            return [Segment(rendered, literal=False)]
        # [plain, literal, plain, literal, ...]; a lone mark gives None for a literal
        pieces = re.split(f"{self._open}({self._special.pattern}){self._close}|[{self._open}{self._close}]", rendered)
        return [Segment(text, literal=i % 2 == 1) for i, text in enumerate(pieces) if text]


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _strings(key)
            yield from _strings(value)
    elif isinstance(data, list):
        for item in data:
            yield from _strings(item)


def _unused_characters(texts: list[str]) -> tuple[str, str]:
    used = set().union(*texts)
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    try:
        return next(free), next(free)
    except StopIteration:
        raise PromptError("the messages use every private-use character of Unicode plane 15") from None

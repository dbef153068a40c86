"""Reading the model's notation of a tool call: `call:name{key:value,...}`.

Values are numbers, `true`, `false`, `null`, strings between `<|"|>` marks, `[...]` and `{...}`; keys are bare or
marked.
"""

from __future__ import annotations

import json
from typing import Any

_QUOTE = '<|"|>'
_MOST_NESTED = 64


def read_tool_call(text: str) -> dict[str, Any]:
    """A call as messages carry it: `{"type": "function", "function": {"name": ..., "arguments": {...}}}`.

    The model may write nonsense: then `arguments` is what it wrote, as a string, and the name as far as there is one.
    """
    name, _, rest = text.strip().removeprefix("call:").partition("{")
    try:
        reader = _Reader("{" + rest)
        arguments = reader.value(0)
        complete = reader.at_end()
    except ValueError:
        complete = False
    function = {"name": name.strip(), "arguments": arguments if complete else text}
    return {"type": "function", "function": function}


class _Reader:
    """Recursive descent; raises ValueError where the text leaves the notation."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def at_end(self) -> bool:
        return not self._text[self._place :].strip()

    def value(self, depth: int) -> Any:
        if depth > _MOST_NESTED:
            raise ValueError("nested too deep")
        if self._take("{"):
            return self._items("}", lambda: (self._key(), self.value(depth + 1)), dict)
        if self._take("["):
            return self._items("]", lambda: self.value(depth + 1), list)
        if self._take(_QUOTE):
            return self._until_quote()
        bare = self._bare(",}]")
        return json.loads(bare)

    def _key(self) -> str:
        key = self._until_quote() if self._take(_QUOTE) else self._bare(":")
        if not self._take(":"):
            raise ValueError("a key without a value")
        return key

    def _items(self, end: str, item: Any, collect: Any) -> Any:
        items: list[Any] = []
        while not self._take(end):
            if items and not self._take(","):
                raise ValueError("items without a comma")
            items.append(item())
        return collect(items)

    def _until_quote(self) -> str:
        end = self._text.index(_QUOTE, self._place)
        text = self._text[self._place : end]
        self._place = end + len(_QUOTE)
        return text

    def _bare(self, ends: str) -> str:
        start = self._place
        while self._place < len(self._text) and self._text[self._place] not in ends:
            self._place += 1
        return self._text[start : self._place].strip()

    def _take(self, token: str) -> bool:
        while self._place < len(self._text) and self._text[self._place].isspace():
            self._place += 1
        found = self._text.startswith(token, self._place)
        self._place += len(token) if found else 0
        return found

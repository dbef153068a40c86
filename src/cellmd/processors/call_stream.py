"""A tool call's arguments as JSON text, made while the model writes them in its own notation.

What is made so far is what `json.dumps` of the whole call begins with: a text as it comes, anything else once it is
complete. At a fault in the notation the text ends there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from cellmd.processors.tool_calls import MOST_NESTED, QUOTE, ToolCall, bare

_HEAD = re.compile(r"\s*call:([^{}\s]+)\s*\{")
_BARE_END = re.compile(r"[,\]}]")

_State = Literal["head", "first key", "key", "colon", "first item", "value", "text", "after", "end", "fault"]


class CallStream:
    """Takes the notation in pieces of any size. name: of the function, once it is certain."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._state: _State = "head"
        self._rest = ""
        self._open: list[str] = []
        self._made: list[str] = []

    def feed(self, text: str) -> str:
        """More of the notation; the JSON text that is certain now and was not before."""
        self._rest += text
        self._made = []
        while self._step():
            pass
        return "".join(self._made)

    def _step(self) -> bool:
        """Go one part further; False if more of the notation is needed for that, or there is nothing more."""
        if self._state not in ("head", "text"):
            self._rest = self._rest.lstrip()
        if not self._rest or self._state in ("end", "fault"):
            return False
        if self._state == "head":
            return self._head()
        if self._state == "text":
            return self._text()
        if self._state in ("first key", "key"):
            return self._key()
        if self._state == "colon":
            return self._go("value", "", 1) if self._rest[0] == ":" else self._go("fault")
        if self._state == "after":
            return self._after()
        return self._value()

    def _head(self) -> bool:
        found = _HEAD.match(self._rest)
        if found is None:
            return False
        if QUOTE in found[1]:
            return self._go("fault")
        self.name = found[1]
        self._open.append("}")
        return self._go("first key", "{", found.end())

    def _key(self) -> bool:
        if self._state == "first key" and self._rest[0] == "}":
            return self._close()
        if self._may_be_quote():
            return False
        quoted = self._rest.startswith(QUOTE)
        start = len(QUOTE) if quoted else 0
        end = self._rest.find(QUOTE if quoted else ":", start)
        if end < 0:
            return False
        key = self._rest[start:end] if quoted else self._rest[:end].strip()
        if QUOTE in key:
            return self._go("fault")
        comma = "" if self._state == "first key" else ", "
        return self._go("colon", f"{comma}{_json(key)}: ", end + start)

    def _value(self) -> bool:
        if self._state == "first item" and self._rest[0] == "]":
            return self._close()
        comma = ", " if self._made_item() else ""
        if self._may_be_quote():
            return False
        if len(self._open) > MOST_NESTED:
            return self._go("fault")
        if self._rest.startswith(QUOTE):
            return self._go("text", f'{comma}"', len(QUOTE))
        if self._rest[0] in "{[":
            self._open.append("}" if self._rest[0] == "{" else "]")
            return self._go("first key" if self._rest[0] == "{" else "first item", comma + self._rest[0], 1)
        end = _BARE_END.search(self._rest)
        if end is None:
            return False
        word = self._rest[: end.start()].strip()
        return self._go("fault") if QUOTE in word else self._go("after", comma + _json(bare(word)), end.start())

    def _made_item(self) -> bool:
        """Whether the value that comes is one of a list, and not its first."""
        return self._state == "value" and self._open[-1] == "]"

    def _text(self) -> bool:
        end = self._rest.find(QUOTE)
        if end >= 0:
            return self._go("after", _json(self._rest[:end])[1:-1] + '"', end + len(QUOTE))
        held = next(n for n in range(len(QUOTE) - 1, -1, -1) if self._rest.endswith(QUOTE[:n]))
        self._go("text", _json(self._rest[: len(self._rest) - held])[1:-1], len(self._rest) - held)
        return False

    def _after(self) -> bool:
        if self._rest[0] == self._open[-1]:
            return self._close()
        if self._rest[0] != ",":
            return self._go("fault")
        return self._go("key" if self._open[-1] == "}" else "value", "", 1)

    def _close(self) -> bool:
        closed = self._open.pop()
        return self._go("after" if self._open else "end", closed, 1)

    def _may_be_quote(self) -> bool:
        return len(self._rest) < len(QUOTE) and QUOTE.startswith(self._rest)

    def _go(self, state: _State, made: str = "", taken: int = 0) -> bool:
        self._state = state
        self._made.append(made)
        self._rest = self._rest[taken:]
        return True


def arguments_json(call: ToolCall) -> str:
    """A call's arguments as JSON text. Of one that is malformed or was cut: what can be told of it, which is no JSON
    then; what the model wrote, without markers, if it does not even begin like a call."""
    if call.arguments is not None:
        return _json(call.arguments)
    stream = CallStream()
    made = stream.feed(call.raw)
    return made if stream.name is not None else call.raw.replace(QUOTE, '"')


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    """JSON has no infinity: it is a word there."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value

"""Gemma 4's notation for tool calls, read back: the inverse of the chat template's `format_argument`.

    call:NAME{KEY:VALUE,...}
    VALUE = <|"|>text<|"|> | number | true | false | null | {KEY:VALUE,...} | [VALUE,...]

Models write less strictly than templates do: spaces around values, quoted keys and unquoted words are accepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

QUOTE = '<|"|>'
_HEAD = re.compile(r"\s*call:([^{}\s]+)\s*(?=\{)")
_CALLS = re.compile(r"<\|tool_call>(.*?)<tool_call\|>", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d{1,4000}")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|inf|nan)")
_WORDS = {"true": True, "false": False, "null": None, "None": None}
MOST_NESTED = 64


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for. arguments: None if its notation is malformed, or the answer was cut within it
    (then it is not `finished`); `raw` says what the model wrote."""

    name: str
    arguments: dict[str, Any] | None
    raw: str
    finished: bool = True


@dataclass(frozen=True)
class CallDelta:
    """More of a call that is being written. index: which one of the answer's. name: of the function, in the first delta
    of a call alone. arguments: what follows of its arguments as JSON text."""

    index: int
    name: str | None
    arguments: str


def parse_tool_calls(text: str) -> list[ToolCall]:
    """All calls of an answer decoded with its special tokens, in order."""
    return [parse_tool_call(match[1]) for match in _CALLS.finditer(text)]


def parse_tool_call(raw: str) -> ToolCall:
    """One call: what stands between `<|tool_call>` and `<tool_call|>`."""
    head = _HEAD.match(raw)
    if head is None or QUOTE in head[1]:
        return ToolCall("", None, raw)
    parser = _Parser(raw, head.end())
    try:
        arguments = parser.mapping(0)
        parser.end()
    except _MalformedError:
        return ToolCall(head[1], None, raw)
    return ToolCall(head[1], arguments, raw)


class _MalformedError(Exception):
    pass


class _Parser:
    def __init__(self, text: str, position: int) -> None:
        self._text = text
        self._position = position

    def mapping(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        result: dict[str, Any] = {}
        while not self._take("}"):
            if result:
                self._expect(",")
            key = self._quoted() if self._at(QUOTE) else self._until(":").strip()
            self._expect(":")
            result[key] = self._value(depth + 1)
        return result

    def end(self) -> None:
        if self._text[self._position :].strip():
            raise _MalformedError

    def _value(self, depth: int) -> Any:
        if depth > MOST_NESTED:
            raise _MalformedError
        if self._at(QUOTE):
            return self._quoted()
        if self._at("{"):
            return self.mapping(depth)
        if self._at("["):
            return self._list(depth)
        return bare(self._until(",]}").strip())

    def _list(self, depth: int) -> list[Any]:
        self._expect("[")
        result: list[Any] = []
        while not self._take("]"):
            if result:
                self._expect(",")
            result.append(self._value(depth + 1))
        return result

    def _quoted(self) -> str:
        self._expect(QUOTE)
        end = self._text.find(QUOTE, self._position)
        if end < 0:
            raise _MalformedError
        text = self._text[self._position : end]
        self._position = end + len(QUOTE)
        return text

    def _until(self, stops: str) -> str:
        start = self._position
        while self._position < len(self._text) and self._text[self._position] not in stops:
            self._position += 1
        if self._position == len(self._text):
            raise _MalformedError
        if QUOTE in self._text[start : self._position]:
            raise _MalformedError
        return self._text[start : self._position]

    def _at(self, what: str) -> bool:
        while self._text[self._position : self._position + 1].isspace():
            self._position += 1
        return self._text.startswith(what, self._position)

    def _take(self, what: str) -> bool:
        if not self._at(what):
            return False
        self._position += len(what)
        return True

    def _expect(self, what: str) -> None:
        if not self._take(what):
            raise _MalformedError


def bare(word: str) -> Any:
    """The value of a word without quotes."""
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word

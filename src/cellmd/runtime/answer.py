"""What the tokens of an answer say: text, reasoning, tool calls.

The model writes its reasoning as `<|channel>thought\n ... \n<channel|>` and a call as
`<|tool_call>call:name{key:value,...}<tool_call|>`. The markers are special tokens, so they are told from text by id,
and none of them reaches the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cellmd.processors.tokenizer import StreamDecoder, Tokenizer
from cellmd.runtime.tool_call import read_tool_call

_TEXT, _HEADER, _REASONING, _CALL = range(4)


@dataclass(frozen=True)
class Delta:
    """What one more token adds."""

    text: str = ""
    reasoning: str = ""


class Answer:
    """Reads the tokens of one answer, in order. `prompt_ids` end in an open channel where the template opened one."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        names = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>")
        self._open, self._close, self._call, self._end_call = (tokenizer.token_id(name) for name in names)
        self._decoder = StreamDecoder(tokenizer)
        self._state = _REASONING if self._left_open(prompt_ids) else _TEXT
        self._line_ends = ""
        self._call_ids: list[int] = []
        self.tool_calls: list[dict[str, Any]] = []

    def feed(self, token_id: int) -> Delta:
        """One more token; end tokens are not fed."""
        if token_id == self._open:
            return self._enter(_HEADER)
        if token_id == self._close:
            return self._enter(_TEXT)
        if token_id == self._call:
            return self._enter(_CALL)
        if token_id == self._end_call:
            return self._enter(_TEXT)
        if self._state == _CALL:
            self._call_ids.append(token_id)
            return Delta()
        return self._say(self._decoder.feed(token_id))

    def finish(self) -> Delta:
        """The answer is over: what was held back."""
        return self._enter(_TEXT)

    def _enter(self, state: int) -> Delta:
        last = self._say(self._decoder.flush())
        if self._state == _CALL:
            call = self._tokenizer.decode(self._call_ids, skip_special=False)
            self.tool_calls.append(read_tool_call(call))
            self._call_ids = []
        self._state = state
        self._line_ends = ""  # the line end before <channel|> belongs to the marker
        return last

    def _say(self, text: str) -> Delta:
        if self._state == _TEXT:
            return Delta(text=text)
        if self._state == _HEADER:
            _, ended, text = text.partition("\n")
            if not ended:
                return Delta()
            self._state = _REASONING
        text = self._line_ends + text
        kept = text.rstrip("\n")
        self._line_ends = text[len(kept) :]
        return Delta(reasoning=kept)

    def _left_open(self, prompt_ids: Sequence[int]) -> bool:
        markers = [i for i in prompt_ids if i in (self._open, self._close)]
        return bool(markers) and markers[-1] == self._open

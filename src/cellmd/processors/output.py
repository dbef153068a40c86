"""What the model answers, taken apart: reasoning, tool calls, and the text meant for the reader.

    <|channel>thought\\n REASONING \\n<channel|> TEXT <|tool_call>call:NAME{KEY:VALUE,...}<tool_call|> TEXT <turn|>

The brackets are special tokens, so they are recognised by id as tokens come, and none of them is ever shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cellmd.processors.call_stream import CallStream, arguments_json
from cellmd.processors.tokenizer import StreamDecoder, Tokenizer
from cellmd.processors.tool_calls import CallDelta, ToolCall, parse_tool_call

_CHANNEL, _CHANNEL_END = "<|channel>", "<channel|>"
_CALL, _CALL_END = "<|tool_call>", "<tool_call|>"
_QUOTE = '<|"|>'
_TURN = "<|turn>"


@dataclass(frozen=True)
class AnswerPiece:
    """What one more token makes certain. All may be empty. call_deltas: of a call, before it is complete."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    call_deltas: tuple[CallDelta, ...] = ()


class AnswerDecoder:
    """Takes an answer apart token by token. Pieces put together do not depend on when they are asked for.

    Within reasoning, the channel's name (its first line) and the newline that closes it belong to the form, not to the
    reasoning. A tool call is given when it is complete, its parts (`call_deltas`) as they come. One that never closes
    is given, unfinished, at the end, and is text if it does not even name a function.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        """prompt_ids: the prompt that is answered, for the template may have opened the reasoning already."""
        self._ids = {
            name: tokenizer.token_id(name) for name in (_CHANNEL, _CHANNEL_END, _CALL, _CALL_END, _QUOTE, _TURN)
        }
        self._hidden = tokenizer.special_tokens.keys() - {self._ids[_QUOTE]}  # within a call
        self._decoder = StreamDecoder(tokenizer)
        self._call_decoder = StreamDecoder(tokenizer, skip_special=False)
        self._call: list[str] | None = None
        self._stream = CallStream()
        self._n_calls = 0
        self._thinking = False
        self._header: str | None = None  # what there is of a channel's first line
        self._newline = ""  # held back: the one before <channel|> is not part of the reasoning
        self._resume(prompt_ids, tokenizer)

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token belongs to the reasoning, or ends it."""
        return self._thinking

    @property
    def in_text(self) -> bool:
        """Whether the next token belongs to the text for the reader, or is a marker after it."""
        return not self._thinking and self._call is None

    @property
    def in_call(self) -> bool:
        """Whether the next token belongs to a tool call, or ends it."""
        return self._call is not None

    @property
    def call_begin(self) -> int | None:
        """The token that opens a tool call, if the vocabulary has one."""
        return self._ids[_CALL]

    @property
    def reasoning_begin(self) -> int | None:
        """The token that opens reasoning, if the vocabulary has one."""
        return self._ids[_CHANNEL]

    @property
    def reasoning_end(self) -> int | None:
        """The token that closes reasoning, if the vocabulary has one."""
        return self._ids[_CHANNEL_END]

    def feed(self, token_id: int) -> AnswerPiece:
        """One more token of the answer."""
        if self._call is not None:
            return self._feed_call(token_id)
        if token_id == self._ids[_CHANNEL] and not self._thinking:
            before = self._decoder.flush()
            self._thinking, self._header = True, ""
            return AnswerPiece(text=before)
        if token_id == self._ids[_CHANNEL_END] and self._thinking:
            piece = self._sort(self._decoder.flush())
            piece = AnswerPiece(reasoning=piece.reasoning + self._unnamed())
            self._thinking, self._header, self._newline = False, None, ""
            return piece
        if token_id == self._ids[_CALL]:
            piece = self._sort(self._decoder.flush())
            self._call, self._stream = [], CallStream()
            self._n_calls += 1
            return piece
        return self._sort(self._decoder.feed(token_id))

    def flush(self) -> AnswerPiece:
        """What was held back: to be called at the end."""
        unfinished = ""
        calls: tuple[ToolCall, ...] = ()
        deltas: tuple[CallDelta, ...] = ()
        if self._call is not None:
            last = self._call_decoder.flush()
            deltas = self._deltas(last)
            unfinished = "".join(self._call) + last
            self._call = None
            if self._stream.name is not None:
                calls = (ToolCall(self._stream.name, None, unfinished, finished=False),)
                unfinished = ""
        piece = self._sort(self._decoder.flush() + unfinished.replace(_QUOTE, '"'))
        reasoning = piece.reasoning + self._newline + self._unnamed()
        self._newline = ""
        return AnswerPiece(piece.text, reasoning, calls, deltas)

    def _feed_call(self, token_id: int) -> AnswerPiece:
        parts = self._call or []
        if token_id != self._ids[_CALL_END]:
            text = "" if token_id in self._hidden else self._call_decoder.feed(token_id)
            parts.append(text)
            self._call = parts
            return AnswerPiece(call_deltas=self._deltas(text))
        last = self._call_decoder.flush()
        deltas = self._deltas(last)
        raw = "".join(parts) + last
        self._call = None
        call = parse_tool_call(raw)
        if self._stream.name is None:  # nothing of it has been told yet
            deltas = (CallDelta(self._n_calls - 1, call.name, arguments_json(call)),)
        return AnswerPiece(tool_calls=(call,), call_deltas=deltas)

    def _deltas(self, text: str) -> tuple[CallDelta, ...]:
        """What more of the notation makes certain of the call that is open."""
        known = self._stream.name
        made = self._stream.feed(text)
        if not made:
            return ()
        return (CallDelta(self._n_calls - 1, self._stream.name if known is None else None, made),)

    def _sort(self, text: str) -> AnswerPiece:
        if not self._thinking or not text:
            return AnswerPiece(text=text)
        if self._header is not None:
            name, newline, text = (self._header + text).partition("\n")
            self._header = None if newline else name
        text = self._newline + text
        self._newline = "\n" if text.endswith("\n") else ""
        return AnswerPiece(reasoning=text.removesuffix("\n"))

    def _unnamed(self) -> str:
        """The first line of a channel that ends within it, if it is not the channel's name: then it is reasoning."""
        header, self._header = self._header, None
        return "" if header is None or header.strip() in ("", "thought") else header

    def _resume(self, prompt_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        """Whether the prompt ends inside an open channel, and where in it."""
        for i in range(len(prompt_ids) - 1, -1, -1):
            if prompt_ids[i] in (self._ids[_TURN], self._ids[_CHANNEL_END]):
                return
            if prompt_ids[i] == self._ids[_CHANNEL]:
                self._thinking = True
                self._header = None if "\n" in tokenizer.decode(prompt_ids[i + 1 :]) else ""
                return


def parse_answer(tokenizer: Tokenizer, token_ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> AnswerPiece:
    """A whole answer at once."""
    decoder = AnswerDecoder(tokenizer, prompt_ids)
    pieces = [*(decoder.feed(token_id) for token_id in token_ids), decoder.flush()]
    return AnswerPiece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
        tuple(delta for piece in pieces for delta in piece.call_deltas),
    )

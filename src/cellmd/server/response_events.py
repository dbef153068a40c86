"""What is answered at /v1/responses: the response whole, and the events that tell it while it is made."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

from cellmd.processors.call_stream import arguments_json
from cellmd.processors.tokenizer import Tokenizer
from cellmd.processors.tool_calls import CallDelta, ToolCall
from cellmd.runtime.result import Piece, TokenScore, Usage
from cellmd.server.chat import call_id, logprobs
from cellmd.server.engine import Answers
from cellmd.server.events import event
from cellmd.server.replies import (
    ArgumentsDelta,
    ArgumentsDone,
    CallItem,
    ItemChanged,
    MessageItem,
    OutputItem,
    OutputPart,
    OutputText,
    OutputTextDelta,
    OutputTextDone,
    PartChanged,
    Place,
    ReasoningItem,
    ReasoningText,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseChanged,
    ResponseEvent,
    ResponseReply,
    ScoredToken,
)
from cellmd.server.schemas import ResponsesRequest

_ResponseKind = Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]


def opened(asked: ResponsesRequest, model: str) -> ResponseReply:
    """A response that has not begun to answer."""
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_logprobs": asked.top_logprobs,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "output": [],
        "usage": None,
    }


def closed(head: ResponseReply, output: list[OutputItem], last: Piece) -> ResponseReply:
    """A response that has answered."""
    used = last.usage or Usage(0, 0)
    cut = last.finish_reason == "length"
    return {
        **head,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
            "total_tokens": used.total_tokens,
        },
    }


def items_of(pieces: Sequence[Piece], tokenizer: Tokenizer | None) -> list[OutputItem]:
    """The output. tokenizer: for log probabilities, None for none."""
    text, reasoning = "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces)
    items: list[OutputItem] = [_reasoning_item(reasoning)] if reasoning else []
    if text or not pieces[-1].tool_calls:
        scores = _scores([score for piece in pieces for score in piece.scores], tokenizer)
        items.append(_message_item(text, scores))
    return [*items, *map(_call_item, pieces[-1].tool_calls)]


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _scores(scores: Sequence[TokenScore], tokenizer: Tokenizer | None) -> list[ScoredToken]:
    return logprobs(scores, tokenizer)["content"] if tokenizer is not None else []


def _text_part(text: str, scores: Sequence[ScoredToken]) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(scores)}


def _message_item(text: str, scores: Sequence[ScoredToken]) -> MessageItem:
    content = [_text_part(text, scores)]
    return {"id": _new_id("msg"), "type": "message", "role": "assistant", "status": "completed", "content": content}


def _reasoning_item(text: str) -> ReasoningItem:
    return {
        "id": _new_id("rs"),
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
        "status": "completed",
    }


def _call_item(call: ToolCall) -> CallItem:
    return {
        "id": _new_id("fc"),
        "type": "function_call",
        "call_id": call_id(),
        "name": call.name,
        "arguments": arguments_json(call),
        "status": "completed" if call.finished else "incomplete",
    }


class Events:
    """The events of one streamed response. response: all of it, once it is there. tokenizer: for log probabilities."""

    def __init__(self, head: ResponseReply, tokenizer: Tokenizer | None) -> None:
        self.response: ResponseReply | None = None
        self._head = head
        self._tokenizer = tokenizer
        self._number = itertools.count()
        self._output: list[OutputItem] = []
        self._open: OutputItem | None = None  # what is being said now; its texts and scores stand in the next two
        self._text = ""
        self._scores: list[ScoredToken] = []

    async def of(self, answers: Answers) -> AsyncIterator[str]:
        yield self._response("response.created", self._head)
        yield self._response("response.in_progress", self._head)
        async for _, piece in answers:
            for one in self._told(piece):
                yield _event(one)
            if piece.finish_reason is None:
                continue
            unfinished = bool(piece.tool_calls) and not piece.tool_calls[-1].finished
            for one in self._end("incomplete" if unfinished else "completed"):
                yield _event(one)
            self.response = closed(self._head, self._output, piece)
            cut = self.response["status"] == "incomplete"
            yield self._response("response.incomplete" if cut else "response.completed", self.response)

    def _response(self, kind: _ResponseKind, response: ResponseReply) -> str:
        changed: ResponseChanged = {"type": kind, "sequence_number": next(self._number), "response": response}
        return _event(changed)

    def _told(self, piece: Piece) -> Iterator[ResponseEvent]:
        if piece.reasoning:
            yield from self._reason(piece.reasoning)
        scores = _scores(piece.scores, self._tokenizer)
        said = [*self._output, *([self._open] if self._open is not None else [])]
        last = piece.finish_reason is not None
        if piece.text or scores:
            yield from self._say(piece.text, scores)
        elif last and not piece.tool_calls and not any(item["type"] == "message" for item in said):
            yield from self._begin_message()
        for delta in piece.call_deltas:
            yield from self._call(delta)

    # ---- what is said ---------------------------------------------------------------------------------------

    def _reason(self, text: str) -> Iterator[ResponseEvent]:
        if self._open is None or self._open["type"] != "reasoning":
            item: ReasoningItem = {**_reasoning_item(""), "status": "in_progress", "content": []}
            yield from self._begin(item)
            yield self._part("response.content_part.added", {"type": "reasoning_text", "text": ""})
        self._text += text
        delta: ReasoningTextDelta = {
            **self._place(),
            "type": "response.reasoning_text.delta",
            "content_index": 0,
            "delta": text,
        }
        yield delta

    def _say(self, text: str, scores: Sequence[ScoredToken]) -> Iterator[ResponseEvent]:
        if self._open is None or self._open["type"] != "message":
            yield from self._begin_message()
        self._text += text
        self._scores += scores
        delta: OutputTextDelta = {
            **self._place(),
            "type": "response.output_text.delta",
            "content_index": 0,
            "delta": text,
            "logprobs": list(scores),
        }
        yield delta

    def _begin_message(self) -> Iterator[ResponseEvent]:
        item: MessageItem = {**_message_item("", []), "status": "in_progress", "content": []}
        yield from self._begin(item)
        yield self._part("response.content_part.added", _text_part("", []))

    def _call(self, delta: CallDelta) -> Iterator[ResponseEvent]:
        if delta.name is not None:
            item: CallItem = {**_call_item(ToolCall(delta.name, {}, "")), "arguments": "", "status": "in_progress"}
            yield from self._begin(item)
        self._text += delta.arguments
        arguments: ArgumentsDelta = {
            **self._place(),
            "type": "response.function_call_arguments.delta",
            "delta": delta.arguments,
        }
        yield arguments

    def _begin(self, item: OutputItem) -> Iterator[ResponseEvent]:
        yield from self._end()
        self._open, self._text, self._scores = item, "", []
        yield self._item("response.output_item.added", item)

    # ---- what has been said ---------------------------------------------------------------------------------

    def _end(self, status: Literal["completed", "incomplete"] = "completed") -> Iterator[ResponseEvent]:
        """status: of a call; what is open and no call has been said to its end."""
        item = self._open
        if item is None:
            return
        if item["type"] == "function_call":
            done: ArgumentsDone = {
                **self._place(),
                "type": "response.function_call_arguments.done",
                "name": item["name"],
                "arguments": self._text,
            }
            yield done
            ended: OutputItem = {**item, "arguments": self._text, "status": status}
        elif item["type"] == "message":
            part = _text_part(self._text, self._scores)
            said: OutputTextDone = {
                **self._place(),
                "type": "response.output_text.done",
                "content_index": 0,
                "text": self._text,
                "logprobs": self._scores,
            }
            yield said
            yield self._part("response.content_part.done", part)
            ended = {**item, "content": [part], "status": "completed"}
        else:
            reason: ReasoningText = {"type": "reasoning_text", "text": self._text}
            reasoned: ReasoningTextDone = {
                **self._place(),
                "type": "response.reasoning_text.done",
                "content_index": 0,
                "text": self._text,
            }
            yield reasoned
            yield self._part("response.content_part.done", reason)
            ended = {**item, "content": [reason], "status": "completed"}
        yield self._item("response.output_item.done", ended)
        self._output.append(ended)
        self._open = None

    # ---- events ---------------------------------------------------------------------------------------------

    def _item(
        self, kind: Literal["response.output_item.added", "response.output_item.done"], item: OutputItem
    ) -> ItemChanged:
        number = next(self._number)
        return {"type": kind, "sequence_number": number, "output_index": len(self._output), "item": item}

    def _part(
        self, kind: Literal["response.content_part.added", "response.content_part.done"], part: OutputPart
    ) -> PartChanged:
        return {**self._place(), "type": kind, "content_index": 0, "part": part}

    def _place(self) -> Place:
        assert self._open is not None
        number = next(self._number)
        return {"sequence_number": number, "item_id": self._open["id"], "output_index": len(self._output)}


def _event(one: ResponseEvent) -> str:
    return event(one, one["type"])

"""What is answered at /v1/responses: the response whole, and the events that tell it while it is made."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

from cellmd.processors.call_stream import arguments_json
from cellmd.processors.tokenizer import Tokenizer
from cellmd.processors.tool_calls import CallDelta, ToolCall
from cellmd.runtime.result import Piece, TokenScore, Usage
from cellmd.server.chat import call_id, logprobs
from cellmd.server.engine import Answers
from cellmd.server.events import event
from cellmd.server.schemas import ResponsesRequest


def opened(asked: ResponsesRequest, model: str) -> dict[str, Any]:
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


def closed(head: dict[str, Any], output: list[dict[str, Any]], last: Piece) -> dict[str, Any]:
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


def items_of(pieces: Sequence[Piece], tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    """The output. tokenizer: for log probabilities, None for none."""
    text, reasoning = "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces)
    items = [_reasoning_item(_new_id("rs"), reasoning)] if reasoning else []
    if text or not pieces[-1].tool_calls:
        scores = _scores([score for piece in pieces for score in piece.scores], tokenizer)
        items.append(_message_item(_new_id("msg"), text, scores))
    return [*items, *(_call_item(_new_id("fc"), call) for call in pieces[-1].tool_calls)]


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _scores(scores: Sequence[TokenScore], tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    if tokenizer is None:
        return []
    content: list[dict[str, Any]] = logprobs(scores, tokenizer)["content"]
    return content


def _text_part(text: str, scores: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(scores)}


def _message_item(item_id: str, text: str, scores: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    content = [_text_part(text, scores)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}


def _reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def _call_item(item_id: str, call: ToolCall) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call_id(),
        "name": call.name,
        "arguments": arguments_json(call),
        "status": "completed" if call.finished else "incomplete",
    }


_Said = Literal["reasoning", "message"]
_Kind = _Said | Literal["call"]


class Events:
    """The events of one streamed response. response: all of it, once it is there. tokenizer: for log probabilities."""

    def __init__(self, head: dict[str, Any], tokenizer: Tokenizer | None) -> None:
        self.response: dict[str, Any] | None = None
        self._head = head
        self._tokenizer = tokenizer
        self._number = itertools.count()
        self._output: list[dict[str, Any]] = []
        self._open: _Kind | None = None
        self._item: dict[str, Any] = {}
        self._text = ""
        self._scores: list[dict[str, Any]] = []

    async def of(self, answers: Answers) -> AsyncIterator[str]:
        yield self._event("response.created", response=self._head)
        yield self._event("response.in_progress", response=self._head)
        async for _, piece in answers:
            for one in self._told(piece):
                yield one
            if piece.finish_reason is None:
                continue
            unfinished = bool(piece.tool_calls) and not piece.tool_calls[-1].finished
            for one in self._end("incomplete" if unfinished else "completed"):
                yield one
            self.response = closed(self._head, self._output, piece)
            yield self._event(f"response.{self.response['status']}", response=self.response)

    def _told(self, piece: Piece) -> list[str]:
        events = self._say("reasoning", piece.reasoning) if piece.reasoning else []
        scores = _scores(piece.scores, self._tokenizer)
        last = piece.finish_reason is not None
        nothing = last and not piece.tool_calls and not any(item["type"] == "message" for item in self._output)
        if piece.text or scores:
            events += self._say("message", piece.text, scores)
        elif nothing and self._open != "message":
            events += self._begin("message")
        for delta in piece.call_deltas:
            events += self._call(delta)
        return events

    def _say(
        self, kind: Literal["reasoning", "message"], text: str, scores: Sequence[dict[str, Any]] = ()
    ) -> list[str]:
        events = self._begin(kind) if self._open != kind else []
        self._text += text
        self._scores += scores
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        more: dict[str, Any] = {"logprobs": list(scores)} if kind == "message" else {}
        return [*events, self._event(name, **self._place(), content_index=0, delta=text, **more)]

    def _begin(self, kind: _Said) -> list[str]:
        events = self._end()
        self._open, self._text, self._scores = kind, "", []
        make = _message_item if kind == "message" else _reasoning_item
        self._item = {**make(_new_id("msg" if kind == "message" else "rs"), ""), "status": "in_progress", "content": []}
        events.append(self._event("response.output_item.added", output_index=len(self._output), item=self._item))
        return [
            *events,
            self._event("response.content_part.added", **self._place(), content_index=0, part=self._part()),
        ]

    def _call(self, delta: CallDelta) -> list[str]:
        events: list[str] = []
        if delta.name is not None:
            events = self._end()
            begun = ToolCall(delta.name, {}, "")
            self._open, self._text = "call", ""
            self._item = {**_call_item(_new_id("fc"), begun), "arguments": "", "status": "in_progress"}
            events.append(self._event("response.output_item.added", output_index=len(self._output), item=self._item))
        self._text += delta.arguments
        name = "response.function_call_arguments.delta"
        return [*events, self._event(name, **self._place(), delta=delta.arguments)]

    def _end(self, status: str = "completed") -> list[str]:
        if self._open is None:
            return []
        events = self._ended_call(status) if self._open == "call" else self._ended_text()
        events.append(self._event("response.output_item.done", output_index=len(self._output), item=self._item))
        self._output.append(self._item)
        self._open = None
        return events

    def _ended_call(self, status: str) -> list[str]:
        self._item = {**self._item, "arguments": self._text, "status": status}
        name = "response.function_call_arguments.done"
        return [self._event(name, **self._place(), name=self._item["name"], arguments=self._text)]

    def _ended_text(self) -> list[str]:
        is_message = self._open == "message"
        part = self._part()
        name = "response.output_text.done" if is_message else "response.reasoning_text.done"
        more: dict[str, Any] = {"logprobs": self._scores} if is_message else {}
        self._item = {**self._item, "content": [part], "status": "completed"}
        place = self._place()
        return [
            self._event(name, **place, content_index=0, text=self._text, **more),
            self._event("response.content_part.done", **place, content_index=0, part=part),
        ]

    def _part(self) -> dict[str, Any]:
        if self._open == "message":
            return _text_part(self._text, self._scores)
        return {"type": "reasoning_text", "text": self._text}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output)}

    def _event(self, name: str, /, **content: Any) -> str:
        return event({"type": name, "sequence_number": next(self._number), **content}, name)

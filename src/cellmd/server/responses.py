"""POST /v1/responses: OpenAI's newer form of the same. No conversations are kept: each request has all turns."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cellmd.processors.tool_calls import ToolCall
from cellmd.runtime.result import Piece, Usage
from cellmd.server.chat import chat_requests, client_of
from cellmd.server.engine import Answers, Engine
from cellmd.server.errors import ApiError
from cellmd.server.events import event, event_stream
from cellmd.server.schemas import ChatRequest, ResponsesRequest, parse, parse_object


async def responses(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    asked = parse(await http.body(), ResponsesRequest)
    chat = parse_object(as_chat(asked), ChatRequest)
    answers = engine.answer(await chat_requests(engine, chat, client_of(http)))
    head = _head(asked, engine.settings.name)
    if asked.stream:
        return event_stream(answers, _Events(head).of(answers))
    pieces = (await answers.whole(http))[0]
    return JSONResponse(_closed(head, _items(pieces), pieces[-1]))


def as_chat(asked: ResponsesRequest) -> dict[str, Any]:
    """The request as one for chat completions."""
    if asked.previous_response_id is not None:
        raise ApiError(
            400,
            "previous_response_id: this server keeps no conversations; send all turns in `input`",
            code="unsupported_parameter",
            param="previous_response_id",
        )
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        messages += _messages(asked.input)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "user", "top_logprobs")
    return {
        **{name: getattr(asked, name) for name in names},
        "messages": messages,
        "max_completion_tokens": asked.max_output_tokens,
        "tools": [_tool(i, tool) for i, tool in enumerate(asked.tools)] if asked.tools else None,
        "tool_choice": _tool_choice(asked.tool_choice),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _format(asked.text.format if asked.text else None),
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }


def _messages(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "message":
            messages.append({"role": item.get("role"), "content": _content(i, item.get("content"))})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id") or "", "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":  # what the model reasoned in earlier turns is not shown to it again
            raise ApiError(400, f"input.{i}: items of type {kind!r} are not supported", param=f"input.{i}.type")
    return messages


def _content(index: int, content: Any) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "input_image":
            parts.append(
                {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail", "auto")}}
            )
        elif kind in ("input_audio", "video_url", "refusal"):
            parts.append(part)
        else:
            where = f"input.{index}.content.{i}"
            raise ApiError(400, f"{where}: parts of type {kind!r} are not supported", param=where)
    return parts


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools.{index}: only functions are supported", param=f"tools.{index}.type")
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if isinstance(choice, dict):
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    if form is not None and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": form.get("name", ""), "schema": form.get("schema", {})}}
    return form


# ---- what is answered ---------------------------------------------------------------------------------------


def _head(asked: ResponsesRequest, model: str) -> dict[str, Any]:
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
        "parallel_tool_calls": asked.parallel_tool_calls,
        "previous_response_id": None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "output": [],
        "usage": None,
    }


def _closed(head: dict[str, Any], output: list[dict[str, Any]], last: Piece) -> dict[str, Any]:
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


def _items(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    text, reasoning = "".join(p.text for p in pieces), "".join(p.reasoning for p in pieces)
    items = [_reasoning_item(_new_id("rs"), reasoning)] if reasoning else []
    if text or not pieces[-1].tool_calls:
        items.append(_message_item(_new_id("msg"), text))
    return [*items, *(_call_item(_new_id("fc"), call) for call in pieces[-1].tool_calls)]


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(item_id: str, text: str) -> dict[str, Any]:
    content = [_text_part(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}


def _reasoning_item(item_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": "completed"}


def _call_item(item_id: str, call: ToolCall) -> dict[str, Any]:
    arguments = call.raw if call.arguments is None else json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": _new_id("call"),
        "name": call.name,
        "arguments": arguments,
        "status": "completed",
    }


class _Events:
    """The events of one streamed response."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._number = itertools.count()
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None  # "reasoning" or "message"
        self._id = ""
        self._text = ""

    async def of(self, answers: Answers) -> AsyncIterator[str]:
        yield self._event("response.created", response=self._head)
        yield self._event("response.in_progress", response=self._head)
        async for _, piece in answers:
            for kind, text in (("reasoning", piece.reasoning), ("message", piece.text)):
                if text:
                    for one in self._say(kind, text):
                        yield one
            if piece.finish_reason is None:
                continue
            nothing_said = not piece.tool_calls and not any(item["type"] == "message" for item in self._output)
            if nothing_said and self._open != "message":
                for one in self._begin("message"):
                    yield one
            for one in [*self._end(), *(e for call in piece.tool_calls for e in self._call(call))]:
                yield one
            closed = _closed(self._head, self._output, piece)
            yield self._event(f"response.{closed['status']}", response=closed)

    def _say(self, kind: str, text: str) -> list[str]:
        events = self._begin(kind) if self._open != kind else []
        self._text += text
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return [*events, self._event(name, **self._place(), content_index=0, delta=text, **more)]

    def _begin(self, kind: str) -> list[str]:
        events = self._end()
        self._open, self._text = kind, ""
        self._id = _new_id("msg" if kind == "message" else "rs")
        item = _message_item(self._id, "") if kind == "message" else _reasoning_item(self._id, "")
        item |= {"status": "in_progress", "content": []}
        events.append(self._event("response.output_item.added", output_index=len(self._output), item=item))
        part = self._part("")
        return [*events, self._event("response.content_part.added", **self._place(), content_index=0, part=part)]

    def _end(self) -> list[str]:
        if self._open is None:
            return []
        is_message = self._open == "message"
        item = _message_item(self._id, self._text) if is_message else _reasoning_item(self._id, self._text)
        name = "response.output_text.done" if is_message else "response.reasoning_text.done"
        more: dict[str, Any] = {"logprobs": []} if is_message else {}
        place = self._place()
        events = [
            self._event(name, **place, content_index=0, text=self._text, **more),
            self._event("response.content_part.done", **place, content_index=0, part=self._part(self._text)),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        self._open = None
        return events

    def _call(self, call: ToolCall) -> list[str]:
        self._id = _new_id("fc")
        item, place = _call_item(self._id, call), self._place()
        begun = {**item, "arguments": "", "status": "in_progress"}
        arguments = item["arguments"]
        events = [
            self._event("response.output_item.added", output_index=len(self._output), item=begun),
            self._event("response.function_call_arguments.delta", **place, delta=arguments),
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=arguments),
            self._event("response.output_item.done", output_index=len(self._output), item=item),
        ]
        self._output.append(item)
        return events

    def _part(self, text: str) -> dict[str, Any]:
        return _text_part(text) if self._open == "message" else {"type": "reasoning_text", "text": text}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self._output)}

    def _event(self, name: str, /, **content: Any) -> str:
        return event({"type": name, "sequence_number": next(self._number), **content}, name)

"""/v1/responses: OpenAI's newer form of the same. A response may go on from an earlier one, as long as that is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from cellmd.server.chat import chat_requests, client_of
from cellmd.server.conversations import Conversation
from cellmd.server.engine import Engine
from cellmd.server.errors import ApiError
from cellmd.server.events import event_stream
from cellmd.server.replies import DeletedResponse, ResponseReply
from cellmd.server.response_events import Events, closed, items_of, opened
from cellmd.server.schemas import ChatRequest, ResponsesRequest, parse, parse_object

_LOGPROBS = "message.output_text.logprobs"


async def responses(http: HttpRequest) -> Response:
    engine: Engine = http.app.state.engine
    asked = parse(await http.body(), ResponsesRequest)
    items = [*_earlier(engine, asked.previous_response_id), *_items(asked.input)]
    chat = parse_object(as_chat(asked, items), ChatRequest)
    answers = engine.answer(await chat_requests(engine, chat, client_of(http, asked)))
    head = opened(asked, engine.settings.name)
    tokenizer = engine.model.processor.tokenizer if chat.logprobs else None

    def keep(response: ResponseReply) -> None:
        if asked.store is not False:
            engine.conversations.keep(Conversation([*items, *response["output"]], response))

    if asked.stream:
        events = Events(head, tokenizer)

        async def kept() -> AsyncIterator[str]:
            async for text in events.of(answers):
                if events.response is not None:
                    keep(events.response)
                yield text

        return event_stream(answers, kept())
    pieces = (await answers.whole(http))[0]
    response = closed(head, items_of(pieces, tokenizer), pieces[-1])
    keep(response)
    return JSONResponse(response)


async def stored_response(http: HttpRequest) -> Response:
    """GET and DELETE of a response that is kept."""
    engine: Engine = http.app.state.engine
    response_id = http.path_params["name"]
    found = engine.conversations.get(response_id)
    if found is None:
        raise ApiError(404, f"no response {response_id[:100]!r} is kept", code="not_found")
    if http.method == "DELETE":
        engine.conversations.forget(response_id)
        deleted: DeletedResponse = {"id": response_id, "object": "response", "deleted": True}
        return JSONResponse(deleted)
    return JSONResponse(found.response)


def _earlier(engine: Engine, response_id: str | None) -> Sequence[Any]:
    if response_id is None:
        return ()
    found = engine.conversations.get(response_id)
    if found is None:
        raise ApiError(
            400,
            f"previous_response_id: no response {response_id[:100]!r} is kept; it was never made here, made with "
            "`store: false`, or is forgotten by now. Send all turns in `input`",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    return found.items


def _items(asked: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "message", "role": "user", "content": asked}] if isinstance(asked, str) else asked


def as_chat(asked: ResponsesRequest, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The request as one for chat completions. items: all turns."""
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    return {
        **{name: getattr(asked, name) for name in (*names, "logit_bias", "seed", "top_logprobs")},
        "messages": [*messages, *_messages(items)],
        "max_completion_tokens": asked.max_output_tokens,
        "tools": [_tool(i, tool) for i, tool in enumerate(asked.tools)] if asked.tools else None,
        "tool_choice": _tool_choice(asked.tool_choice),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _format(asked.text.format if asked.text else None),
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "logprobs": _LOGPROBS in (asked.include or []) or bool(asked.top_logprobs),
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
            content = _content(i, output) if isinstance(output, str | list) else json.dumps(output)
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
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
        elif kind in ("input_audio", "audio_url", "video_url", "refusal"):
            parts.append(part)
        else:
            where = f"input.{index}.content.{i}"
            raise ApiError(400, f"{where}: parts of type {kind!r} are not supported", param=where)
    return parts


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise ApiError(400, f"tools.{index}: only functions are supported", param=f"tools.{index}.type")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        named = [_named(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    return _named(choice)


def _named(tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise ApiError(400, "tool_choice: only functions can be chosen", param="tool_choice")
    return {"type": "function", "function": {"name": tool.get("name")}}


def _format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    if form is not None and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"name": form.get("name", ""), "schema": form.get("schema", {})}}
    return form
